"""Gate: what happens to every request, whatever its route. Pure ASGI.

Names the request, has its caller checked (`service.gate.guard`), checks size and deadline, hands it
on, turns whatever escapes a route into a problem document, and counts and logs each request exactly
once. It reads no body.
"""

import itertools
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import (
    Abandoned,
    AstrolabeError,
    InvalidValue,
    PayloadTooLarge,
    RateLimited,
)
from service.gate.envelopes import envelope
from service.gate.exchange import EXCHANGE, Exchange
from service.gate.guard import Guard, needs_admin
from service.gate.problems import Headers, as_error
from service.gate.reply import REPLY
from service.observe.logs import request_id_of_task, trace_id_of_task
from service.overload.overload_log import STATUSES as OVERLOAD_STATUSES
from service.overload.overload_log import OverloadLog
from service.overload.shedding import BULK, PRIORITY, TIMEOUT
from service.overload.unread import UNREAD
from service.serving.serving import Serving
from service.settings.settings import Settings

log = logging.getLogger(__name__)


UNMATCHED: Final = "unmatched"

PRIORITY_NAMES: Final = ("interactive", "bulk")
PRIORITIES: Final = frozenset(name.encode() for name in PRIORITY_NAMES)

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


@dataclass(frozen=True, slots=True)
class Gate:
    """The application as the server sees it: `bare` endpoints first, `app` for all other paths.

    A bare endpoint answers through its `Exchange`. FastAPI's stack alone costs 20 microseconds, so
    the hot route does not pass through it; what it raises arrives here all the same.
    """

    app: FastAPI
    bare: Mapping[tuple[str, str], ASGIApp]
    serving: Serving
    new_request_id: Callable[[], str]
    guard: Guard = field(init=False)
    overload_log: OverloadLog = field(default_factory=OverloadLog)

    def __post_init__(self) -> None:
        if any(needs_admin(method, path) for method, path in self.bare):
            raise ValueError("a bare endpoint that needs the admin key would not be asked for it")
        guard = Guard(self.serving.settings, self.serving.clock)
        object.__setattr__(self, "guard", guard)  # the class is frozen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; other kinds of scope pass through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        serving = self.serving
        settings, telemetry = serving.settings, serving.telemetry
        headers = dict(scope["headers"])
        request_id = _given_request_id(headers) or self.new_request_id()
        exchange = Exchange(
            request_id,
            scope["path"],
            serving.clock() - scope.pop(UNREAD, 0.0),
            headers,
            settings.request_timeout_ms / 1000,
            serving,
            reply=scope.pop(REPLY, None),
        )
        scope[EXCHANGE] = exchange
        request_id_of_task.set(request_id)
        if telemetry.tracer is not None:
            exchange.trace = telemetry.tracer.begin(scope["method"], scope["path"], headers)
            trace_id_of_task.set(exchange.trace.trace_id if exchange.trace else "")
        telemetry.in_flight += 1
        try:
            endpoint = self.bare.get((scope["method"], scope["path"]))
            changing = endpoint is None and needs_admin(scope["method"], scope["path"])
            if changing or not self.guard.idle:
                exchange.key = self.guard.name_of(headers.get(b"authorization", b""))
                self.guard.admit(scope, exchange.key)
            max_bytes = settings.max_changes_bytes if changing else settings.max_body_bytes
            _check(exchange, settings, max_bytes)
            if b"transfer-encoding" in headers:
                receive = _capped(receive, max_bytes)
            if endpoint is not None:
                exchange.route = scope["path"]
                await endpoint(scope, receive, send)
            else:
                await self.app(scope, receive, exchange.naming(send))
        except Exception as exc:
            await _answer_failure(exchange, exc, send)
        finally:
            exchange.reply = None  # it holds the scope, which holds the exchange
            telemetry.in_flight -= 1
            self._record(scope, exchange)

    def _record(self, scope: Scope, exchange: Exchange) -> None:
        """Count and log the request; the only place that does."""
        # No status means that the task was cancelled before it could answer.
        status = exchange.status or Abandoned.status
        telemetry = self.serving.telemetry
        seconds = self.serving.clock() - exchange.started_s
        route = exchange.route or getattr(scope.get("route"), "path", UNMATCHED)
        telemetry.request_finished(route, status, seconds)
        if exchange.trace is not None and telemetry.tracer is not None:
            telemetry.tracer.finish(exchange.trace, scope["method"], route, status, exchange.answer)
        if exchange.key:
            telemetry.key_used(exchange.key)
        if exchange.code == RateLimited.code:
            telemetry.rejected(exchange.code)
        self._log(scope, exchange, status, seconds)

    def _log(self, scope: Scope, exchange: Exchange, status: int, seconds: float) -> None:
        settings = self.serving.settings
        wanted = settings.log_requests
        if wanted == "none" or (wanted == "errors" and status < 400):
            return
        unlogged = 0
        if status in OVERLOAD_STATUSES:
            unlogged = self.overload_log.due(self.serving.clock())
            if unlogged < 0:
                return
        fields: dict[str, Any] = {
            "method": scope["method"],
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
    """Status, headers and body that answer an error, which the log will name by its code."""
    exchange.code = error.code
    return envelope(error, exchange.path, exchange.request_id)


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


def _check(exchange: Exchange, settings: Settings, max_bytes: int) -> None:
    """Refuse what no route needs to see; raises RequestError."""
    headers = exchange.headers
    if (asked := headers.get(TIMEOUT)) is not None:
        exchange.timeout_s = _timeout_s(asked, settings.request_timeout_max_ms)
    if (priority := headers.get(PRIORITY)) is not None:
        exchange.bulk = _is_bulk(priority)
    # The server enforces that the body has this length; only chunked bodies must be counted.
    length = headers.get(b"content-length")
    if length is not None and not (
        length.isdigit() and len(length) < 16 and int(length) <= max_bytes
    ):
        raise _too_large(max_bytes)


def request_ids() -> Iterator[str]:
    """New request ids: random once, counted after that, so no system call for each request."""
    start = os.urandom(8).hex()
    for serial in itertools.count(1):
        yield f"{start}{serial:016x}"


def _given_request_id(headers: dict[bytes, bytes]) -> str | None:
    """The caller's own id, where it is fit for logs and headers."""
    given = headers.get(b"x-request-id")
    fit = given is not None and _REQUEST_ID.fullmatch(given)
    return given.decode("ascii") if given is not None and fit else None


def _timeout_s(asked: bytes, max_ms: int) -> float:
    if len(asked) > 9 or not asked.isdigit() or not 1 <= int(asked) <= max_ms:
        raise InvalidValue(
            f"X-Request-Timeout-Ms must be a whole number of milliseconds from 1 to {max_ms}"
        )
    return int(asked) / 1000


def _is_bulk(priority: bytes) -> bool:
    if priority not in PRIORITIES:
        raise InvalidValue(f"X-Request-Priority must be one of {', '.join(PRIORITY_NAMES)}")
    return priority == BULK


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is over {limit} bytes: send fewer or shorter texts")


def _capped(receive: Receive, limit: int) -> Receive:
    """A receive that refuses a chunked body once it is over the limit."""
    received = 0

    async def receive_capped() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise _too_large(limit)
        return message

    return receive_capped
