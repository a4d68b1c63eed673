"""Connection: uvicorn's HTTP protocol with limits on what a client may send before its body.

uvicorn bounds neither the number of a request's headers nor their size, nor the time in which they
must arrive. `BoundedConnection` bounds all three, and the number of open connections. It answers
what it refuses with a problem document, as a route would, and closes the connection. The gate
bounds the body.

Headers nearly always arrive in one piece. Such a request costs two more comparisons.
"""

import asyncio
import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.errors import (
    AstrolabeError,
    HeadersTooLarge,
    MalformedRequest,
    OverloadError,
    TooManyConnections,
)
from service.gate.cors import Cors, OriginHeaders
from service.gate.exchange import REPLY, Reply
from service.gate.problems import problem_body, problem_headers
from service.overload.resting import LONGEST_S
from service.overload.shedding import Shedding
from service.overload.unread import UNREAD, unread_s

log = logging.getLogger(__name__)

MAX_HEADERS: Final = 200
"""A choice: several times as many as browsers and proxies send."""

RETRY_AFTER_S: Final = 1.0
"""When a refused client may connect again. A choice: nobody knows when a connection will close."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The limits of one connection, and the functions that it calls.

    `connections` is the most that may be open at once; None for no limit. `on_refused` is called
    with the error code of every refusal. `shedding` refuses requests by their headers. `cors` says
    which pages may read a refusal; it is None if no other origin is allowed.
    """

    header_bytes: int
    header_timeout_s: float
    connections: int | None
    new_request_id: Callable[[], str]
    on_refused: Callable[[str], None]
    shedding: Shedding
    cors: Cors | None


class BoundedConnection(HttpToolsProtocol):
    """One connection of a client, within `limits`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._in_head = False
        self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._refusal: AstrolabeError | None = None
        self._shed_error: OverloadError | None = None
        self._has_rested = False
        self._idle_since_s = math.inf
        self._reply: Reply | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the first request's headers, or refuse the connection."""
        super().connection_made(transport)
        max_connections = self._limits.connections
        if max_connections is not None and len(self.connections) > max_connections:
            self._refuse(
                TooManyConnections(
                    f"{max_connections} connections are open, and no more may be: try again later",
                    retry_after_s=RETRY_AFTER_S,
                )
            )
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers, and tell the pending request that its client has left."""
        self._stop_timer()
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        super().connection_lost(exc)
        if self._reply is not None:
            self._reply.hang_up()

    def data_received(self, data: bytes) -> None:
        """Parse the data, and refuse the request once its head is over a limit."""
        if self._refusal is not None:
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._refusal is not None or self.transport.is_closing():
            return
        if self._in_head:
            if self._head_bytes > self._limits.header_bytes:
                self._refuse(self._too_large())
            else:
                self._start_timer()
        else:
            self._head_bytes = 0
            # A chunked body may end with more headers (trailers).
            if self.headers is not None and len(self.headers) > MAX_HEADERS:
                self._refuse(self._too_large())

    def on_message_begin(self) -> None:
        """Note that a request line has begun."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop the timer and check the size of the head. Then shed the request, or pass it on."""
        self._in_head = False
        if self._timer is not None:
            self._stop_timer()
        if len(self.headers) > MAX_HEADERS or (
            # The data may hold some of the body too. So count the head exactly only if it may be
            # too big.
            self._head_bytes > self._limits.header_bytes
            and self._exact_head_bytes() > self._limits.header_bytes
        ):
            self._refusal = self._too_large()
            raise self._refusal  # stops the parser; uvicorn then calls send_400_response
        if (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused:
            shedding = self._limits.shedding
            if shedding.armed and self.parser.get_method() != b"OPTIONS":
                waited_s = unread_s(self.transport) if self._has_rested else 0.0
                self._has_rested = False
                self._shed_error = shedding.refusal(self.url, self.headers, waited_s)
                if self._shed_error is not None:
                    return
                self.scope[UNREAD] = waited_s  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()
        self._reply = Reply(self.cycle)
        self.scope[REPLY] = self._reply  # type: ignore[typeddict-unknown-key]

    def on_body(self, body: bytes) -> None:
        """Pass on a part of a body, or drop it if the request is shed."""
        if self._shed_error is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Pass on the end of a request, or answer it here if it is shed."""
        if self._shed_error is None:
            super().on_message_complete()
            return
        error, self._shed_error = self._shed_error, None
        keep_alive = self.parser.should_keep_alive()
        request_id = self._limits.new_request_id().encode()
        placeholder = b"\x7f" * len(request_id)
        answer = _cached_answer(error, keep_alive, placeholder, self._origin_headers())
        self.transport.write(answer.replace(placeholder, request_id))
        if keep_alive:
            self.on_response_complete()
            self._has_rested = self._limits.shedding.resting.on_refused(self.flow)
        else:
            self.transport.close()

    def on_response_complete(self) -> None:
        """Begin the next pipelined request after an answer, or wait for the next request.

        An answer does not restart the keep-alive timer, to save its cost. The timer, once due,
        checks since when the connection is idle.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._check_idle_in(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that was idle for `timeout_keep_alive` seconds; else check later."""
        self.timeout_keep_alive_task = None
        if self.transport.is_closing():
            return
        remaining_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
        if self.flow.read_paused:
            self._check_idle_in(LONGEST_S)  # it rests, so a request may wait unread in the kernel
        elif remaining_s <= 0:
            self.transport.close()
        elif remaining_s < math.inf:
            self._check_idle_in(remaining_s)

    def _check_idle_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since_s = math.inf

    def send_400_response(self, msg: str) -> None:
        """Refuse data that is not HTTP, or a request that was refused while it was parsed."""
        self._refuse(self._refusal or MalformedRequest(f"{msg} Send HTTP/1.1."))

    def _exact_head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(
            f"the request's line and headers are over {self._limits.header_bytes} bytes or "
            f"{MAX_HEADERS} headers: send fewer or shorter ones"
        )

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self._limits.header_timeout_s, self._timed_out)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _timed_out(self) -> None:
        """Close the connection, but wait for an answer that is still being computed."""
        self._timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._start_timer()
            return
        self._limits.on_refused("header_timeout")
        self.transport.close()

    def _refuse(self, error: AstrolabeError) -> None:
        self._refusal = error
        self._stop_timer()
        self._limits.on_refused(error.code)
        if self.cycle is not None and not self.cycle.response_complete:
            # The client would take the refusal of a pipelined request for the answer to the one
            # before.
            self.transport.close()
            return
        request_id = self._limits.new_request_id().encode()
        self.transport.write(_answer(error, False, request_id, self._origin_headers()))
        self.transport.close()

    def _origin_headers(self) -> OriginHeaders:
        """What lets an allowed page read a refusal, as far as the headers have been read."""
        if self._limits.cors is None:
            return ()
        return self._limits.cors.headers(dict(self.headers or ()).get(b"origin"))


def _answer(
    error: AstrolabeError, keep_alive: bool, request_id: bytes, origin_headers: OriginHeaders
) -> bytes:
    """The bytes of a response that holds the error as a problem document (RFC 9457)."""
    body = problem_body(error, request_id.decode())
    phrase = HTTPStatus(error.status).phrase.encode()
    head = b"HTTP/1.1 %d %s\r\n" % (error.status, phrase)
    headers = dict(problem_headers(error, body)) | dict(origin_headers)
    headers[b"x-request-id"] = request_id
    if not keep_alive:
        headers[b"connection"] = b"close"
    lines = [b"%s: %s\r\n" % header for header in headers.items()]
    return b"".join([head, *lines, b"\r\n", body])


_cached_answer = functools.lru_cache(maxsize=16)(_answer)
"""`Shedding` refuses many requests with one error, so their answers differ only in the request id:
two kinds of refusal, kept connections and others, and a few origins make 16."""
