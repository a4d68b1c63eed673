"""Bounds: the phases of a connection, and what a client may send in them.

docs/security.md lists the bounds of each phase, and tests/docs/test_bounds.py holds it to this.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from service.gate.cors import Cors
from service.overload.shedding import Shedding

MAX_HEADERS: Final = 200
"""A choice: several times as many as browsers and proxies send."""

RETRY_AFTER_S: Final = 1.0
"""When a refused client may connect again. A choice: nobody knows when a connection will close."""

FRAMING_BYTES: Final = 8 << 10
"""What may surround the chunks of a body, beyond as much as the body has. A choice: room for any
trailer in use, and for 2,000 chunks of one byte, whose parsing takes about three milliseconds."""

PARSE_BYTES: Final = 4 << 10
"""How much is parsed at a time: 150 small requests, or 700 chunks of one byte. One read of the
socket can bring 256 kB."""

EVENTS_AT_ONCE: Final = 300
"""Requests and chunks that are parsed before other connections get a turn. A choice: they take one
or two milliseconds. A large body in one piece has one such event for each `PARSE_BYTES`."""

PROBE_S: Final = 0.1
"""How long a half-closed client waits for its answer before the service asks whether it is there. A
choice: most answers come sooner, and without one more message."""

N_PROBES: Final = 2
"""The kernel learns from the first that the client has gone, the service from the second."""


class Phase(Enum):
    """What the client of a connection is sending."""

    NEW = "first byte"
    IDLE = "next request"
    HEAD = "head"
    BODY = "body"
    ENDING = "after the last answer"


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
