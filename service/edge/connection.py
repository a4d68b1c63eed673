"""Connection: uvicorn's HTTP protocol, with a bound in bytes and a clock for every phase.

uvicorn bounds neither what a client sends around a request's body nor how long it takes. What a
client is sending makes the `Phase` of its connection; docs/security.md lists the bounds of each.
`BoundedConnection` answers what it refuses with a problem document, as a route would. A fault in a
body goes to the request's own route, so its answer is counted and logged like any other. The gate
bounds the body itself.

A request nearly always arrives in one piece. Then all of this costs a few comparisons.
"""

import asyncio
import math
from typing import Any, Final

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.edge.bounds import (
    EVENTS_AT_ONCE,
    FRAMING_BYTES,
    MAX_HEADERS,
    N_PROBES,
    PARSE_BYTES,
    PROBE_S,
    RETRY_AFTER_S,
    ConnectionLimits,
    Phase,
)
from service.edge.closing import (
    DROP_EVERY_S,
    LINGER_BYTES,
    LINGER_S,
    STALL_S,
    ClosingTransport,
    HeldFlow,
)
from service.edge.refusals import (
    cached_refusal_bytes,
    framing_error,
    parse_error,
    refusal_bytes,
)
from service.errors import (
    AstrolabeError,
    HeadersTooLarge,
    MalformedRequest,
    OverloadError,
    TooManyConnections,
)
from service.gate.cors import OriginHeaders
from service.gate.exchange import REPLY, Reply
from service.overload.resting import LONGEST_S
from service.overload.unread import UNREAD, unread_s

_FRAMING_HEADERS: Final = frozenset({b"host", b"transfer-encoding", b"expect"})
_HOP_HEADERS: Final = frozenset({b"upgrade", b"http2-settings"})


# Names of this module, because to look a member up costs more than to compare it.
_NEW, _IDLE, _HEAD, _BODY, _ENDING = Phase


class BoundedConnection(HttpToolsProtocol):
    """One connection of a client, within `limits`."""

    transport: ClosingTransport  # type: ignore[assignment]
    flow: HeldFlow

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
        self._phase = _NEW
        self._n_received = 0  # of this request; or after the last one
        self._n_body = 0
        self._n_events = 0  # callbacks of the parser since others had a turn
        self._unparsed = memoryview(b"")
        self._is_parsing = False
        self._ignores_upgrade = False
        self._hosts: list[bytes] = []
        self._codings: list[bytes] = []
        self._sound_framing: tuple[str, list[bytes], list[bytes]] = ("", [], [])
        self._half_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = self._due_s = math.inf
        self._stall_timer: asyncio.TimerHandle | None = None
        self._refusal: AstrolabeError | None = None
        self._shed_error: OverloadError | None = None
        self._has_rested = False
        self._reply: Reply | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the first request, or refuse the connection."""
        super().connection_made(ClosingTransport(transport, self._close))  # type: ignore[arg-type]
        self.flow = HeldFlow(self.transport)  # type: ignore[arg-type]
        limit, n_open = self._limits.connections, len(self.connections)
        if limit is None or n_open <= limit:
            self._expire_in(self._limits.header_timeout_s)
            return
        self._refuse(
            TooManyConnections(
                f"{limit} connections are open, and no more may be: try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        )
        if n_open > 2 * limit:  # too many to let each read its refusal in peace
            self.transport.plain.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks, and tell the pending request that its client has left."""
        self._stop_timer()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        self._unparsed = memoryview(b"")
        super().connection_lost(exc)
        if self._reply is not None:
            self._reply.hang_up()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Answer what the client has asked before it closed its half of the connection."""
        if self.scheme == "https":
            return None  # TLS knows no half-closed connection
        self._half_closed = True
        if self._phase is _HEAD:
            self._refuse(MalformedRequest("the client closed before the end of its headers"))
        elif self._phase is _BODY:
            self._fail_body(MalformedRequest("the client closed before the end of its body"))
        if self.transport.is_closing():
            self.transport.plain.close()
        elif self._is_answered():
            self.transport.close()
        else:
            self.loop.call_later(PROBE_S, self._probe, N_PROBES)
        return True

    def _probe(self, n_left: int) -> None:
        """Write an interim answer, which fails if the client has closed both halves.

        A client of HTTP/1.1 has to expect one before any answer (RFC 9110, section 15.2).
        """
        may_begin = not (self._is_answered() or self.pipeline or self.cycle.response_started)
        if may_begin and n_left and self.scope["http_version"] == "1.1":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.loop.call_later(PROBE_S, self._probe, n_left - 1)

    def shutdown(self) -> None:
        """Close at once, or after the answer that is being computed."""
        if self._is_answered():
            self.transport.plain.close()
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        """Wait for a client that does not take its answer, but not for ever."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(STALL_S, self.transport.plain.abort)

    def resume_writing(self) -> None:
        """Go on with the answer."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        super().resume_writing()

    def _close(self) -> None:
        """End the connection after its last answer; `ClosingTransport` calls this."""
        plain = self.transport.plain
        may_send = self._phase is not _IDLE or self.pipeline or self._unparsed
        self._phase, self._n_received = _ENDING, 0
        self._expire_in(LINGER_S)
        if self._half_closed or not (may_send or self.flow.read_paused):
            plain.close()
            return
        self.transport.close_half()
        self.flow.held = False
        self.flow.resume_reading()

    def _expire_in(self, seconds: float) -> None:
        """End this phase after so many seconds.

        A timer that is due earlier stays, and checks then: most requests set no timer.
        """
        self._due_s = self.loop.time() + seconds
        if self._due_s < self._timer_s < math.inf:
            self._stop_timer()
        if self._due_s < self._timer_s:
            self._timer, self._timer_s = self.loop.call_later(seconds, self._on_timer), self._due_s

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_s = None, math.inf

    def _on_timer(self) -> None:
        self._timer, self._timer_s = None, math.inf
        left_s = self._due_s - self.loop.time()
        if left_s > 0:
            self._expire_in(left_s)
        elif self.transport.is_closing():
            self.transport.plain.abort()
        elif self.flow.read_paused:
            self._expire_in(LONGEST_S)  # it rests, so a request may wait unread in the kernel
        elif not self._is_answered():
            self._expire_in(self._limits.header_timeout_s)
        else:
            if self._phase is not _IDLE:
                self._limits.on_refused("header_timeout")
            self.transport.plain.close()

    def data_received(self, data: bytes) -> None:
        """Parse the data; what follows many complete requests waits until they are answered."""
        if self._phase is _ENDING:
            self._drop(len(data))
        elif self._unparsed or self.pipeline or len(data) > PARSE_BYTES:
            self._unparsed = memoryview(bytes(self._unparsed) + data)
            self._parse_unparsed()
        else:
            self._parse(data)

    def _drop(self, n_bytes: int) -> None:
        """Count bytes that nobody reads, and take a breath before more of them."""
        self._n_received += n_bytes
        if self._n_received > LINGER_BYTES:
            self.transport.plain.abort()
        else:
            self.flow.pause_reading()
            self.loop.call_later(DROP_EVERY_S, self.flow.resume_reading)

    def _parse_unparsed(self) -> None:
        """Parse what waits, but give other connections a turn where that takes long."""
        self._n_events = 0
        while (
            self._unparsed
            and not self.pipeline
            and self._phase is not _ENDING
            and self._n_events < EVENTS_AT_ONCE
        ):
            piece, self._unparsed = self._unparsed[:PARSE_BYTES], self._unparsed[PARSE_BYTES:]
            self._parse(piece)
        if self._phase is _ENDING:
            self._unparsed = memoryview(b"")
        was_held, self.flow.held = self.flow.held, bool(self._unparsed or self.pipeline)
        if self._unparsed:
            self.flow.pause_reading()
            if not self.pipeline:
                self.loop.call_soon(self._parse_unparsed)
        elif was_held:
            self.flow.resume_reading()

    def _parse(self, data: bytes | memoryview) -> None:
        before = self._phase
        self._n_received += len(data)
        self._is_parsing = True
        try:
            self._feed(data)
        except httptools.HttpParserError as exc:
            self._stop_parsing(self._refusal or parse_error(exc))
        self._is_parsing = False
        if (self._phase is _IDLE and not self._n_received) or self._phase is _ENDING:
            return
        if self._shed_error is not None:  # to wait for its body would only delay the answer
            self._answer_shed(False)
        elif self._phase is _BODY:
            surplus_bytes = self._n_received - 2 * self._n_body - self._exact_head_bytes()
            if surplus_bytes > FRAMING_BYTES:
                self._fail_body(self._too_much_framing())
        elif self._n_received > self._limits.header_bytes:
            self._refuse(self._too_large())
        elif self._phase is _HEAD and (before is _IDLE or self._due_s == math.inf):
            self._expire_in(self._limits.header_timeout_s)

    def _feed(self, data: bytes | memoryview) -> None:
        """Give data to the parser, which stops where a request asks for another protocol."""
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as exc:
                # The service makes no upgrade, so the body is a body (RFC 9110, 7.8). The parser
                # cannot go back: a new one reads the same head without the upgrade.
                data = self._plain_head() + bytes(data[exc.args[0] :])
                self.parser = httptools.HttpRequestParser(self)

    def _plain_head(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                value = b", ".join(one for one in options if one.lower() not in _HOP_HEADERS)
            if name not in _HOP_HEADERS and value:
                lines.append(b"%s: %s" % (name, value))
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def on_message_begin(self) -> None:
        """Note that a request line has begun."""
        self._phase = _HEAD
        self._n_events += 1
        self._hosts, self._codings = [], []
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header. Drop a trailer: nothing may add to the headers after they were checked.

        Does what uvicorn does, without a second call for each header.
        """
        if self._phase is _BODY:
            return
        name = name.lower()
        if name in _FRAMING_HEADERS:
            if name == b"host":
                self._hosts.append(value)
            elif name == b"transfer-encoding":
                self._codings.append(value.lower())
            elif value.lower() == b"100-continue":
                self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Stop the clock and check the head. Then shed the request, or pass it on."""
        self._refusal = self._head_error()
        if self._refusal is not None:
            raise self._refusal  # stops the parser
        self._due_s = math.inf
        if self.parser.should_upgrade():
            self._ignores_upgrade = True
            return
        self._phase = _BODY
        if self._is_answered() and not self.flow.write_paused:
            shedding = self._limits.shedding
            if shedding.armed and self.parser.get_method() != b"OPTIONS":
                waited_s = unread_s(self.transport.plain) if self._has_rested else 0.0
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
        self._n_events += 1
        self._n_body += len(body)
        if self._shed_error is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Pass on the end of a request, or answer it here if it is shed."""
        if self._ignores_upgrade:
            self._ignores_upgrade = False
            return
        self._phase = _IDLE
        self._n_received = self._n_body = 0
        if self._shed_error is None:
            super().on_message_complete()
        else:
            self._answer_shed(self.parser.should_keep_alive())

    def on_response_complete(self) -> None:
        """Begin the next pipelined request after an answer, or wait for the next request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline or self._unparsed or self.flow.read_paused:
            self._go_on()
        cycle = self.cycle  # None where only refusals were written, without the gate
        if cycle is not None and not cycle.response_complete:
            return
        if self._refusal is not None:
            self._write_refusal(self._refusal)
        elif self._half_closed:
            self.transport.close()
        elif self._phase is _IDLE:
            self._expire_in(self.timeout_keep_alive)

    def _go_on(self) -> None:
        """Begin the next request that was sent ahead, and parse or read what follows it."""
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        if not self._is_parsing:
            self._parse_unparsed()
        self.flow.resume_reading()

    def _is_answered(self) -> bool:
        """Whether every request whose head is complete has its whole answer."""
        return self.cycle is None or self.cycle.response_complete

    def _head_error(self) -> AstrolabeError | None:
        """Why this head is refused; None if it is not."""
        # The data may hold some of the body too, or not the whole head. So count the head exactly,
        # but only if it may be too big.
        may_be_large = not 0 < self._n_received <= self._limits.header_bytes
        if len(self.headers) > MAX_HEADERS or (
            may_be_large and self._exact_head_bytes() > self._limits.header_bytes
        ):
            return self._too_large()
        version = self.parser.get_http_version()
        # A kept connection sends the same headers again and again.
        if (version, self._hosts, self._codings) != self._sound_framing:
            error = framing_error(version, self._hosts, self._codings)
            if error is not None:
                return error
            self._sound_framing = (version, self._hosts, self._codings)
        if self.parser.should_upgrade() and self.parser.get_method() == b"CONNECT":
            return MalformedRequest("the service is no proxy: send another method than CONNECT")
        return None

    def _exact_head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(
            f"the request's line and headers are over {self._limits.header_bytes} bytes or "
            f"{MAX_HEADERS} headers: send fewer or shorter ones"
        )

    def _too_much_framing(self) -> HeadersTooLarge:
        return HeadersTooLarge(
            "chunk sizes, extensions and trailers are over the size of the body and "
            f"{FRAMING_BYTES} bytes: send larger chunks, or a Content-Length"
        )

    def _answer_shed(self, keep_alive: bool) -> None:
        """Write the answer to a request that is shed."""
        error, self._shed_error = self._shed_error, None
        assert error is not None
        request_id = self._limits.new_request_id().encode()
        placeholder = b"\x7f" * len(request_id)
        answer = cached_refusal_bytes(error, keep_alive, placeholder, self._origin_headers())
        self.transport.write(answer.replace(placeholder, request_id))
        if keep_alive:
            self.on_response_complete()
            self._has_rested = self._limits.shedding.resting.on_refused(self.flow)
        else:
            self.transport.close()

    def _stop_parsing(self, error: AstrolabeError) -> None:
        """End the connection because the parser cannot go on."""
        if self._shed_error is not None:
            self._answer_shed(False)
        elif self._phase is _BODY:
            self._fail_body(error)
        else:
            self._refuse(error)

    def _fail_body(self, error: AstrolabeError) -> None:
        """Hand the error to the request's route, which answers it, and read nothing more."""
        assert self._reply is not None
        self._limits.on_refused(error.code)
        self._reply.fail(error)
        self._phase, self._n_received = _ENDING, 0

    def _refuse(self, error: AstrolabeError) -> None:
        """Answer what is no request with the error, after the answers to the requests before."""
        self._limits.on_refused(error.code)
        self._refusal = error
        self._phase, self._n_received = _ENDING, 0
        if self._is_answered():
            self._write_refusal(error)

    def _write_refusal(self, error: AstrolabeError) -> None:
        request_id = self._limits.new_request_id().encode()
        self.transport.write(refusal_bytes(error, False, request_id, self._origin_headers()))
        self.transport.close()

    def _origin_headers(self) -> OriginHeaders:
        """What lets an allowed page read a refusal, as far as the headers have been read."""
        if self._limits.cors is None:
            return ()
        return self._limits.cors.headers(dict(self.headers or ()).get(b"origin"))
