"""Connection: uvicorn's HTTP protocol with an end to everything a client may send before a request.

uvicorn reads headers for as long and as many as they come. Here their bytes, their number and the
time they take are bounded, and so are the connections that are open at once. What is refused is
answered with a problem document, as by any route, and the connection is closed. The body is the
gate's work: by then there is a deadline.

A request whose headers arrive in one piece, as nearly all do, costs two comparisons more.
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
RETRY_AFTER_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one connection may take; `refused` is told the code of every refusal.

    `shedding` refuses requests unread. `cors` says which pages may read a refusal; it is None if
    no other origin is allowed.
    """

    header_bytes: int
    header_timeout_s: float
    connections: int | None
    new_request_id: Callable[[], str]
    refused: Callable[[str], None]
    shedding: Shedding
    cors: Cors | None


class BoundedConnection(HttpToolsProtocol):
    """One connection of a client, which can only take so much."""

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
        self._shed: OverloadError | None = None
        self._rested = False
        self._idle_since_s = math.inf
        self._reply: Reply | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the first request, or refuse the connection."""
        super().connection_made(transport)
        most = self._limits.connections
        if most is not None and len(self.connections) > most:
            self._refuse(
                TooManyConnections(
                    f"{most} connections are open, as many as may be", retry_after_s=RETRY_AFTER_S
                )
            )
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock, and tell who still computes for this client."""
        self._stop_timer()
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        super().connection_lost(exc)
        if self._reply is not None:
            self._reply.hang_up()

    def data_received(self, data: bytes) -> None:
        """Parse what came, within the limits."""
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
            # Headers may also follow a chunked body.
            if self.headers is not None and len(self.headers) > MAX_HEADERS:
                self._refuse(self._too_large())

    def on_message_begin(self) -> None:
        """A request line has begun."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is whole: check its size, stop the clock, hand it on."""
        self._in_head = False
        if self._timer is not None:
            self._stop_timer()
        if len(self.headers) > MAX_HEADERS or (
            # The piece may hold body as well, so it is counted only where it could be too much.
            self._head_bytes > self._limits.header_bytes
            and self._exact_head_bytes() > self._limits.header_bytes
        ):
            self._refusal = self._too_large()
            raise self._refusal  # ends the parser, which calls send_400_response
        if (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused:
            shedding = self._limits.shedding
            if shedding.armed and self.parser.get_method() != b"OPTIONS":
                waited_s = unread_s(self.transport) if self._rested else 0.0
                self._rested = False
                self._shed = shedding.refusal(self.url, self.headers, waited_s)
                if self._shed is not None:
                    return
                self.scope[UNREAD] = waited_s  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()
        self._reply = Reply(self.cycle)
        self.scope[REPLY] = self._reply  # type: ignore[typeddict-unknown-key]

    def on_body(self, body: bytes) -> None:
        """More of a body; that of a request that is shed is read and dropped."""
        if self._shed is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole: where it is shed, the answer goes out here, and the next may come."""
        if self._shed is None:
            super().on_message_complete()
            return
        error, self._shed = self._shed, None
        keeps = self.parser.should_keep_alive()
        request_id = self._limits.new_request_id().encode()
        blank = b"\x7f" * len(request_id)
        answer = _shed_answer(error, keeps, blank, self._origin_headers())
        self.transport.write(answer.replace(blank, request_id))
        if keeps:
            self.on_response_complete()
            self._rested = self._limits.shedding.resting.refused(self.flow)
        else:
            self.transport.close()

    def on_response_complete(self) -> None:
        """An answer is out: go on with what was sent early, or wait for the next request.

        The timer of a connection kept alive is not set anew by each answer; it looks, once it is
        due, since when nothing came.
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
            self._look_in(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which nothing came for as long as it is kept; else look again."""
        self.timeout_keep_alive_task = None
        if self.transport.is_closing():
            return
        left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
        if self.flow.read_paused:
            self._look_in(LONGEST_S)  # it may hold a request that nobody has read yet
        elif left_s <= 0:
            self.transport.close()
        elif left_s < math.inf:
            self._look_in(left_s)

    def _look_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since_s = math.inf

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or what was refused within the parser."""
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
        """Close, but let an answer that is still being computed leave first."""
        self._timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._start_timer()
            return
        self._limits.refused("header_timeout")
        self.transport.close()

    def _refuse(self, error: AstrolabeError) -> None:
        self._refusal = error
        self._stop_timer()
        self._limits.refused(error.code)
        if self.cycle is not None and not self.cycle.response_complete:
            # A client that sent its next request early would take this for the answer to its last.
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
    error: AstrolabeError, keeps: bool, request_id: bytes, origin_headers: OriginHeaders
) -> bytes:
    """A problem document as it goes over the wire."""
    body = problem_body(error, request_id.decode())
    phrase = HTTPStatus(error.status).phrase.encode()
    head = b"HTTP/1.1 %d %s\r\n" % (error.status, phrase)
    headers = dict(problem_headers(error, body)) | dict(origin_headers)
    headers[b"x-request-id"] = request_id
    if not keeps:
        headers[b"connection"] = b"close"
    lines = [b"%s: %s\r\n" % header for header in headers.items()]
    return b"".join([head, *lines, b"\r\n", body])


_shed_answer = functools.lru_cache(maxsize=16)(_answer)
"""All requests that one refusal sheds get the same answer, except for the id: two kinds of refusal,
kept connections and others, and a few origins make 16."""
