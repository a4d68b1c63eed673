"""Exchange: one request on its way through the gate, and how it is answered."""

from dataclasses import dataclass
from typing import Final

from starlette.types import Message, Send

from service.core.batching.job import Answer
from service.gate.problems import Headers
from service.gate.reply import Reply
from service.observe.tracing import RequestTrace
from service.serving.serving import Serving

EXCHANGE: Final = "astrolabe.exchange"
"""Key of the request's `Exchange` in the ASGI scope."""

PAGE_HEADERS: Final[Headers] = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
]
"""What every HTML page carries that says nothing else; its Content-Security-Policy is its own."""


@dataclass(slots=True)
class Exchange:
    """One request on its way through: what the gate found out, and what became of it."""

    request_id: str
    path: str
    started_s: float
    headers: dict[bytes, bytes]
    timeout_s: float
    serving: Serving
    status: int = 0
    code: str = ""
    route: str = ""
    queries: list[str] | None = None
    answer: Answer | None = None
    trace: RequestTrace | None = None
    key: str = ""
    bulk: bool = False
    reply: Reply | None = None

    @property
    def deadline_s(self) -> float:
        """When the answer is due, on the batcher's clock."""
        return self.started_s + self.timeout_s

    @property
    def left_s(self) -> float:
        """Time until then."""
        return self.deadline_s - self.serving.clock()

    async def respond(self, send: Send, status: int, headers: Headers, body: bytes) -> None:
        """Answer in one go, with the headers that every answer carries."""
        self.status = status
        self._add_common(headers)
        if self.reply is not None and self.reply(status, headers, body):
            return
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def naming(self, send: Send) -> Send:
        """A `send` that adds what `respond` adds, for applications that answer by themselves."""

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                headers = list(message["headers"])
                self._add_common(headers)
                found = dict(headers)
                if found.get(b"content-type", b"").startswith(b"text/html"):
                    headers += [header for header in PAGE_HEADERS if header[0] not in found]
                message["headers"] = headers
            await send(message)

        return send_named

    def _add_common(self, headers: Headers) -> None:
        headers.append((b"x-request-id", self.request_id.encode()))
        if self.serving.draining:
            # A kept connection would pin its client to a replica that is going away.
            headers.append((b"connection", b"close"))
