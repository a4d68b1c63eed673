"""Gate: what happens to every request, whatever its route. A plain ASGI application.

The gate gives the request an id, has the guard check its caller (`service.gate.guard`), checks its
size and deadline, and calls its route. It answers an exception of the route with a problem
document. It counts and logs each request exactly once. It never reads a body.
"""

import asyncio
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import (
    Abandoned,
    AstrolabeError,
    DeadlineExceeded,
    InvalidValue,
    PayloadTooLarge,
    RateLimited,
)
from service.gate.cors import Cors
from service.gate.exchange import EXCHANGE, REPLY, Exchange, Reply
from service.gate.guard import Guard, needs_admin
from service.gate.problems import Headers, as_error, envelope
from service.observe.logs import request_id_of_task, trace_id_of_task
from service.overload.overload_log import STATUSES as OVERLOAD_STATUSES
from service.overload.overload_log import OverloadLog
from service.overload.shedding import BULK, PRIORITY, TIMEOUT
from service.overload.unread import UNREAD
from service.serving.serving import Serving
from service.settings.settings import Settings

log = logging.getLogger(__name__)

UNMATCHED: Final = "unmatched"
PREFLIGHT: Final = "preflight"
"""What the metrics call the route of a request that no route takes, and that of a preflight."""

PRIORITY_NAMES: Final = ("interactive", "bulk")
PRIORITIES: Final = frozenset(name.encode() for name in PRIORITY_NAMES)

_limit_of_task: ContextVar[tuple[Exchange, asyncio.Timeout]] = ContextVar("limit_of_task")

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


@dataclass(frozen=True, slots=True)
class Gate:
    """The application as the server sees it.

    The gate calls the endpoints in `bare` itself, and hands all other paths to `app`. FastAPI's
    stack alone costs 20 microseconds, so the hot route does not pass through it. Exceptions of the
    endpoints come to the gate, those of other routes to the handlers of `service.api.app`. `cors`
    is None if the settings allow no other origin.
    """

    app: FastAPI
    bare: Mapping[tuple[str, str], ASGIApp]
    serving: Serving
    new_request_id: Callable[[], str]
    guard: Guard = field(init=False)
    cors: Cors | None = field(init=False)
    overload_log: OverloadLog = field(default_factory=OverloadLog)

    def __post_init__(self) -> None:
        if any(needs_admin(method, path) for method, path in self.bare):
            raise ValueError("a bare endpoint that needs the admin key would be open to everybody")
        settings = self.serving.settings
        origins = settings.allowed_origins()
        # The class is frozen.
        object.__setattr__(self, "guard", Guard(settings, self.serving.clock))
        object.__setattr__(self, "cors", Cors(self.app, origins) if origins else None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; hand other kinds of scope to `app`."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        telemetry = self.serving.telemetry
        exchange = self._begin(scope)
        if scope["method"] == "HEAD":
            # Routes answer it as GET, and the connection leaves the body out (RFC 9110, 9.3.2).
            scope = {**scope, "method": "GET"}
        telemetry.in_flight += 1
        try:
            preflight = self.cors and self.cors.preflight(scope, exchange.headers)
            if preflight:  # before the guard: browsers send no key with it
                exchange.route, exchange.origin_headers = PREFLIGHT, ()  # the answer has its own
                headers, body = preflight.raw_headers, bytes(preflight.body)
                await exchange.respond(send, preflight.status_code, headers, body)
            else:
                await self._serve(scope, receive, send, exchange)
        except Exception as exc:
            await _answer_failure(exchange, exc, send)
        finally:
            exchange.reply = None  # it holds the scope, which holds the exchange
            telemetry.in_flight -= 1
            self._record(scope, exchange)

    def _begin(self, scope: Scope) -> Exchange:
        """Put a new exchange into the scope, and its ids into the log's context."""
        serving, headers = self.serving, dict(scope["headers"])
        request_id = _id_in(headers) or self.new_request_id()
        exchange = scope[EXCHANGE] = Exchange(
            request_id,
            scope["method"],
            scope["path"],
            serving.clock() - scope.pop(UNREAD, 0.0),
            headers,
            serving.settings.request_timeout_ms / 1000,
            serving,
            scope.pop(REPLY, None),
        )
        request_id_of_task.set(request_id)
        if self.cors is not None:
            exchange.origin_headers = self.cors.headers(headers.get(b"origin"))
        if serving.telemetry.tracer is not None:
            exchange.trace = serving.telemetry.tracer.begin(scope["method"], scope["path"], headers)
            trace_id_of_task.set(exchange.trace.trace_id if exchange.trace else "")
        return exchange

    async def _serve(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> None:
        """Check the caller, the deadline and the size, and call the route."""
        settings, headers = self.serving.settings, exchange.headers
        endpoint = self.bare.get((scope["method"], scope["path"]))
        needs_key = endpoint is None and needs_admin(scope["method"], scope["path"])
        if needs_key or not self.guard.idle:
            exchange.key = self.guard.name_of(headers.get(b"authorization", b""))
            self.guard.admit(scope, exchange.key)
        _check(exchange, settings)
        reply = exchange.reply
        if b"transfer-encoding" in headers or (reply is not None and reply.body_is_unread):
            receive = _bounded(receive, settings.max_body_bytes, reply)
            if reply is not None and reply.fault is not None:  # not every route reads its body
                raise reply.fault
        if endpoint is not None:
            exchange.route = scope["path"]
            await endpoint(scope, receive, send)
        else:
            await self._call_app(scope, receive, exchange.naming(send), exchange)

    async def _call_app(
        self, scope: Scope, receive: Receive, send: Send, exchange: Exchange
    ) -> None:
        """Call a route of FastAPI, at most until the deadline that the request itself names."""
        left_s = exchange.left_s if TIMEOUT in exchange.headers else None
        limit = asyncio.timeout(left_s)
        _limit_of_task.set((exchange, limit))
        try:
            async with limit:
                await self.app(scope, receive, send)
        except TimeoutError:
            if not limit.expired():
                raise
            raise too_late(exchange) from None

    def _record(self, scope: Scope, exchange: Exchange) -> None:
        """Count and log the request; the only place that does."""
        # Without a status the task was cancelled before it could answer.
        status = exchange.status or Abandoned.status
        telemetry = self.serving.telemetry
        seconds = self.serving.clock() - exchange.started_s
        route = exchange.route or getattr(scope.get("route"), "path", UNMATCHED)
        telemetry.request_finished(route, status, seconds)
        if exchange.trace is not None and telemetry.tracer is not None:
            telemetry.tracer.finish(exchange.trace, exchange.method, route, status, exchange.answer)
        if exchange.key:
            telemetry.key_used(exchange.key)
        if exchange.code == RateLimited.code:
            telemetry.rejected(exchange.code)
        self._log(scope, exchange, status, seconds)

    def _log(self, scope: Scope, exchange: Exchange, status: int, seconds: float) -> None:
        settings = self.serving.settings
        level = settings.log_requests
        if level == "none" or (level == "errors" and status < 400):
            return
        unlogged = 0
        if status in OVERLOAD_STATUSES:
            unlogged = self.overload_log.due(self.serving.clock())
            if unlogged < 0:
                return
        fields: dict[str, Any] = {
            "method": exchange.method,
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 6),
        }
        if exchange.code:
            fields["code"] = exchange.code
        if unlogged:
            fields["like_it_unlogged"] = unlogged
        if exchange.key:
            fields["key"] = exchange.key
        if settings.log_queries and exchange.queries is not None:
            fields["queries"] = exchange.queries
        log.info("request", extra={"fields": fields})


def answer_error(error: AstrolabeError, exchange: Exchange) -> tuple[int, Headers, bytes]:
    """Status, headers and body of the answer to an error; the log will name the error's code."""
    exchange.code = error.code
    return envelope(error, exchange.path, exchange.request_id)


def too_late(exchange: Exchange) -> DeadlineExceeded:
    """The error of a request whose deadline has passed."""
    return DeadlineExceeded(
        f"no answer within {exchange.timeout_s * 1000:.0f} ms: try again, or allow more with "
        "X-Request-Timeout-Ms"
    )


def begin_change() -> Callable[[], None]:
    """Let the change that a route now begins run to its end, past the deadline of its request.

    Returns a function for the time in which the change can still be given up: it raises
    DeadlineExceeded once the deadline that the request names has passed.
    """
    exchange, limit = _limit_of_task.get()
    timed = limit.when() is not None
    limit.reschedule(None)

    def check() -> None:
        if timed and exchange.left_s <= 0:
            raise too_late(exchange)

    return check


async def _answer_failure(exchange: Exchange, exc: Exception, send: Send) -> None:
    error = as_error(exc)
    if error is not exc:
        private = {"private": exchange.queries or []}
        log.error("unhandled exception", exc_info=exc, extra=private)
    if exchange.status:
        return  # the answer has begun, so it cannot become a problem document any more
    exchange.serving.shedding.arm(error)
    status, headers, body = answer_error(error, exchange)
    await exchange.respond(send, status, headers, body)


def _check(exchange: Exchange, settings: Settings) -> None:
    """Read deadline and priority, and refuse a body that is too long; raises RequestError."""
    headers = exchange.headers
    if (timeout_ms := headers.get(TIMEOUT)) is not None:
        exchange.timeout_s = _timeout_s(timeout_ms, settings.request_timeout_max_ms)
    if (priority := headers.get(PRIORITY)) is not None:
        exchange.bulk = _is_bulk(priority)
    # The server enforces that the body has this length; only chunked bodies must be counted.
    length = headers.get(b"content-length")
    if length is not None and not (
        length.isdigit() and len(length) < 16 and int(length) <= settings.max_body_bytes
    ):
        raise _too_large(settings.max_body_bytes)


def request_ids() -> Iterator[str]:
    """New request ids: a random start, then a counter, so no id costs a system call."""
    start = os.urandom(8).hex()
    for serial in itertools.count(1):
        yield f"{start}{serial:016x}"


def _id_in(headers: dict[bytes, bytes]) -> str | None:
    """The caller's own request id; None if there is none that fits into logs and headers."""
    request_id = headers.get(b"x-request-id")
    if request_id is None or not _REQUEST_ID.fullmatch(request_id):
        return None
    return request_id.decode("ascii")


def _timeout_s(timeout_ms: bytes, max_ms: int) -> float:
    if len(timeout_ms) > 9 or not timeout_ms.isdigit() or not 1 <= int(timeout_ms) <= max_ms:
        raise InvalidValue(
            f"X-Request-Timeout-Ms must be a whole number of milliseconds from 1 to {max_ms}"
        )
    return int(timeout_ms) / 1000


def _is_bulk(priority: bytes) -> bool:
    if priority not in PRIORITIES:
        raise InvalidValue(f"X-Request-Priority must be one of {', '.join(PRIORITY_NAMES)}")
    return priority == BULK


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is over {limit} bytes: send less at once")


def _bounded(receive: Receive, limit: int, reply: Reply | None) -> Receive:
    """A `receive` that refuses a body as soon as it is over the limit or turns out to be broken."""
    received = 0

    async def receive_bounded() -> Message:
        nonlocal received
        message = await receive()
        if reply is not None and reply.fault is not None:
            raise reply.fault
        received += len(message.get("body", b""))
        if received > limit:
            raise _too_large(limit)
        return message

    return receive_bounded
