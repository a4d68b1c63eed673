"""One keep-alive HTTP/1.1 connection, which carries one query at a time.

httptools parses the answer in C. The client looks at the status and two headers, and never at the
body. It is an asyncio protocol and not an HTTP library's client, because it shares the machine with
the server and an HTTP library costs more CPU: docs/loadtest.md compares them.
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
    """One issued query on its way through the client.

    Times are seconds of `time.perf_counter`; `sent_s` is NaN until the request is written.
    """

    sample_id: int  # LoadGen's handle, which `complete` gives back to LoadGen
    row: int  # row in the Recorder
    request: bytes  # head and body
    issued_s: float
    sent_s: float = math.nan
    ended: bool = False
    connection: "Connection | None" = None


class Owner(Protocol):
    """Takes a connection's reports; the pool implements it."""

    def on_answer(self, connection: "Connection", ticket: Ticket, code: int, timing: bytes) -> None:
        """Take the end of `ticket`: a status or a Failure, and the Server-Timing header."""

    def on_close(self, connection: "Connection", ticket: Ticket | None) -> None:
        """Take note that the connection closed; `ticket`, if any, had no answer yet."""


class Connection(asyncio.Protocol):
    """Sends a ticket's request and tells its owner how the query ended."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._ticket: Ticket | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._timing = b""
        self._is_json = False
        self.idle_since_s = time.perf_counter()
        self.reusable = True

    def send(self, ticket: Ticket) -> None:
        """Write the ticket's request now; the connection must be idle."""
        assert self._transport is not None
        self._ticket = ticket
        ticket.connection = self
        self._timing = b""
        self._is_json = False
        ticket.sent_s = time.perf_counter()
        self._transport.write(ticket.request)

    def abort(self) -> None:
        """Close at once and forget a query in flight, which the owner has ended already."""
        self._ticket = None
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; asyncio calls this when the socket is open."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Parse bytes of an answer; asyncio calls this."""
        try:
            if self._ticket is None:
                raise httptools.HttpParserError("bytes without a request")
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            ticket, self._ticket = self._ticket, None
            self.abort()
            if ticket is not None:
                self._owner.on_answer(self, ticket, Failure.BAD_ANSWER, b"")

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner; asyncio calls this when the socket is closed."""
        ticket, self._ticket = self._ticket, None
        self.reusable = False
        self._owner.on_close(self, ticket)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the two headers of interest; httptools calls this for every header."""
        lowered = name.lower()
        if lowered == b"server-timing":
            self._timing = value
        elif lowered == b"content-type":
            self._is_json = b"json" in value

    def on_message_complete(self) -> None:
        """Report the answer; httptools calls this when the answer is whole."""
        ticket, self._ticket = self._ticket, None
        if ticket is None:
            return
        code = self._parser.get_status_code()
        if code == OK and not self._is_json:
            code = Failure.BAD_ANSWER
        self.reusable = self._parser.should_keep_alive()
        self._owner.on_answer(self, ticket, code, self._timing)
