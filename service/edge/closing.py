"""Closing: ends a connection so that its client can still read the last answer.

The kernel resets a connection that closes while bytes of the client are unread, and a reset takes
the answer away from a client that is still sending. So the service first closes its own half, then
reads on and drops what comes, for a bounded time and size (RFC 9112, section 9.6).
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.http.flow_control import FlowControl

LINGER_S: Final = 5.0
"""How long a connection reads on after its last answer: as long as nginx (`lingering_timeout`), and
long enough for a client to finish a large body."""

LINGER_BYTES: Final = 64 << 20
"""How much it reads on. A choice: a client that sends 60 MB by mistake still learns so."""

DROP_EVERY_S: Final = 0.01
"""How often it reads in that time. A choice: 256 kB each time still drop 60 MB in 2.4 s, and a
client that sends without end takes no more than a hundredth of the loop's time."""

STALL_S: Final = 30.0
"""How long a client may take none of its answer. A choice: half of what nginx allows
(`send_timeout`), because an answer here has kilobytes."""


class ClosingTransport:
    """A transport whose `close` calls `on_close`, which decides how the connection ends.

    uvicorn closes the transport in several places, each right after the last byte of an answer.
    """

    __slots__ = (
        "_closing",
        "_on_close",
        "get_extra_info",
        "pause_reading",
        "plain",
        "resume_reading",
        "write",
    )

    def __init__(self, plain: asyncio.Transport, on_close: Callable[[], None]) -> None:
        self.plain = plain
        # Bound once: a call through this object costs no more than a direct one.
        self.write: Callable[[bytes], None] = plain.write
        self.pause_reading = plain.pause_reading
        self.resume_reading = plain.resume_reading
        self.get_extra_info: Callable[..., Any] = plain.get_extra_info
        self._on_close = on_close
        self._closing = False

    def is_closing(self) -> bool:
        """Whether `close` was called, or the connection is lost."""
        return self._closing or self.plain.is_closing()

    def close(self) -> None:
        """Write nothing from now on, and let `on_close` end the connection."""
        if not self._closing:
            self._closing = True
            self.write = _drop
            self._on_close()

    def close_half(self) -> None:
        """Tell the client that no byte follows; TLS cannot say so without ending the connection."""
        if self.plain.can_write_eof():
            self.plain.write_eof()


class HeldFlow(FlowControl):
    """uvicorn's flow control, which reads on for a route's sake; but not while `held`."""

    held = False

    def resume_reading(self) -> None:
        """Read on, unless requests that were read already still wait for their turn."""
        if not self.held:
            super().resume_reading()


def _drop(_data: bytes) -> None:
    """Take the place of `write` once the last answer is written."""
