"""Reply: a whole answer in one write, past the two messages that ASGI makes of it.

uvicorn writes head and body apart and checks every header for what must not be in one. An answer
that is there as a whole, with headers of our own making, needs neither: the second write alone was
a twentieth of the time in which Python ran (py-spy, 16 connections).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

REPLY: Final = "astrolabe.reply"
"""Key of the request's `Reply` in the ASGI scope; absent where something rewrites what is sent."""


@dataclass(slots=True)
class Reply:
    """Answers one request of one connection; `on_hang_up` is called where the client leaves."""

    cycle: RequestResponseCycle
    on_hang_up: Callable[[], None] | None = None

    def __call__(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
        """Send the answer and end the exchange; False where it has to go by `send`.

        `headers` hold the body's content-length, and are lower-case and free of line breaks.
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
