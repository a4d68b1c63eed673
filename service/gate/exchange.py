"""Exchange: one request, from its head to its answer, and what the gate records of it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from starlette.types import Message, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from service.core.batching.job import Answer
from service.errors import Abandoned, AstrolabeError
from service.gate.problems import Headers
from service.observe.tracing import RequestTrace
from service.serving.serving import Serving

EXCHANGE: Final = "astrolabe.exchange"
"""Key of the request's `Exchange` in the ASGI scope."""

REPLY: Final = "astrolabe.reply"
"""Key of the request's `Reply` in the ASGI scope."""

PAGE_HEADERS: Final[Headers] = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
]
"""Every HTML page carries these unless it sets them itself; each page sets its own
Content-Security-Policy."""


@dataclass(slots=True)
class Reply:
    """The way back to one request's connection: it writes a whole answer, and reports a hang-up.

    uvicorn writes head and body separately and checks every header for forbidden characters. An
    answer that is complete and whose headers the service made needs neither. The second write alone
    was a twentieth of the time in which Python ran (py-spy, 16 connections).
    """

    cycle: RequestResponseCycle
    pending: "asyncio.Future[Answer] | None" = None
    fault: AstrolabeError | None = None

    @property
    def body_is_unread(self) -> bool:
        """Whether some of the request's body is still to come."""
        return self.cycle.more_body

    def fail(self, error: AstrolabeError) -> None:
        """Let the route raise this error: the rest of its body cannot be read."""
        self.fault = error
        self.cycle.message_event.set()

    def hang_up(self) -> None:
        """Give up the answer that is being computed, because the client has left."""
        if self.pending is not None and not self.pending.done():
            self.pending.set_exception(Abandoned("the client closed the connection"))

    def write(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
        """Write the whole answer; return False if the caller must use the ASGI `send` instead.

        `headers` must include the body's content-length. The caller makes sure that names are
        lower-case and that no header holds a line break, which nothing checks here.
        """
        cycle = self.cycle
        if cycle.disconnected or cycle.response_started or cycle.flow.write_paused:
            return False
        if cycle.scope["method"] == "HEAD":
            return False
        lines = [STATUS_LINE[status]]
        for name, value in (*cycle.default_headers, *headers):
            if name == b"connection" and value == b"close":
                cycle.keep_alive = False
            else:
                lines += (name, b": ", value, b"\r\n")
        lines += (b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n", body)
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.transport.write(b"".join(lines))
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()
        return True


@dataclass(slots=True)
class Exchange:
    """One request: its head, its deadline, the way to answer it, and what the log says of it.

    `started_s` is on the service's clock, `timeout_s` counts from it. `status` stays 0 until the
    answer begins. `key` is the name of the caller's key, `code` that of the error. `reply` is None
    for a request that did not come through a connection of `service.edge`.
    """

    request_id: str
    method: str
    path: str
    started_s: float
    headers: dict[bytes, bytes]
    timeout_s: float
    serving: Serving
    reply: Reply | None = None
    origin_headers: Sequence[tuple[bytes, bytes]] = ()
    status: int = 0
    code: str = ""
    route: str = ""
    queries: list[str] | None = None
    answer: Answer | None = None
    trace: RequestTrace | None = None
    key: str = ""
    bulk: bool = False

    @property
    def deadline_s(self) -> float:
        """When the answer is due, on the batcher's clock."""
        return self.started_s + self.timeout_s

    @property
    def left_s(self) -> float:
        """Seconds until the answer is due."""
        return self.deadline_s - self.serving.clock()

    async def wait(self, future: "asyncio.Future[Answer]") -> Answer:
        """The batcher's answer; raises Abandoned if the client hangs up before it comes."""
        reply = self.reply
        if reply is None:
            self.answer = await future
            return self.answer
        reply.pending = future
        try:
            self.answer = await future
        finally:
            reply.pending = None  # the connection keeps its reply until the next request
        return self.answer

    async def respond(self, send: Send, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer, with the headers that every answer carries."""
        self._add_common(headers)
        self.status = status
        if self.reply is not None and self.reply.write(status, headers, body):
            return
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def naming(self, send: Send) -> Send:
        """A `send` that adds the headers of `respond` to answers that FastAPI sends."""

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start" and not self.status:
                self.status = message["status"]
                headers = list(message["headers"])
                self._add_common(headers)
                present = dict(headers)
                if present.get(b"content-type", b"").startswith(b"text/html"):
                    headers += [header for header in PAGE_HEADERS if header[0] not in present]
                message["headers"] = headers
            await send(message)

        return send_named

    def _add_common(self, headers: Headers) -> None:
        headers.append((b"x-request-id", self.request_id.encode()))
        headers += self.origin_headers
        reply = self.reply
        # A connection that stays open would tie its client to a replica that is going away. One
        # whose body nobody reads cannot take another request.
        if self.serving.draining or (reply is not None and reply.body_is_unread):
            headers.append((b"connection", b"close"))
