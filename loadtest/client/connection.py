"""One keep-alive HTTP/1.1 connection carrying one query at a time.

httptools reads the answer in C; only the status and two headers are looked at, and the body is
counted, not parsed. This is an asyncio protocol rather than an HTTP library's client because the
client shares the machine with the server: see docs/loadtest.md for what was measured.
"""

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Protocol, cast

import httptools

from loadtest.client.outcomes import OK, Failure


@dataclass(slots=True)
class Ticket:
    """One issued query on its way through the client."""

    sample_id: int  # LoadGen's handle, returned to it when the query ends
    row: int  # in the Recorder
    request: bytes
    issued_s: float
    sent_s: float = math.nan
    ended: bool = False
    connection: "Connection | None" = None


class Owner(Protocol):
    """What a connection reports to; implemented by the pool."""

    def answered(self, connection: "Connection", ticket: Ticket, code: int, timing: bytes) -> None:
        """The whole answer to `ticket` has arrived."""

    def closed(self, connection: "Connection", ticket: Ticket | None) -> None:
        """The connection is gone; `ticket`, if any, has no answer."""


class Connection(asyncio.Protocol):
    """Sends a ticket's bytes and tells its owner how that ended."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._ticket: Ticket | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._timing = b""
        self._json = False
        self.idle_since_s = time.perf_counter()
        self.reusable = True

    def send(self, ticket: Ticket) -> None:
        """Write the ticket's request now; the connection must be idle."""
        assert self._transport is not None
        self._ticket = ticket
        ticket.connection = self
        self._timing = b""
        self._json = False
        ticket.sent_s = time.perf_counter()
        self._transport.write(ticket.request)

    def abort(self) -> None:
        """Close at once, forgetting a query in flight (its owner has already ended it)."""
        self._ticket = None
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio: the socket is open."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Asyncio: bytes of an answer."""
        try:
            if self._ticket is None:
                raise httptools.HttpParserError("bytes nobody asked for")
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            ticket, self._ticket = self._ticket, None
            self.abort()
            if ticket is not None:
                self._owner.answered(self, ticket, Failure.BAD_ANSWER, b"")

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio: the socket is closed."""
        ticket, self._ticket = self._ticket, None
        self.reusable = False
        self._owner.closed(self, ticket)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Parser: one header line."""
        lowered = name.lower()
        if lowered == b"server-timing":
            self._timing = value
        elif lowered == b"content-type":
            self._json = b"json" in value

    def on_message_complete(self) -> None:
        """Parser: the last byte of the answer is in."""
        ticket, self._ticket = self._ticket, None
        if ticket is None:
            return
        code = self._parser.get_status_code()
        if code == OK and not self._json:
            code = Failure.BAD_ANSWER
        self.reusable = self._parser.should_keep_alive()
        self._owner.answered(self, ticket, code, self._timing)
