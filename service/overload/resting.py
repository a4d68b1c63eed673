"""Resting: stop reading a connection for a while, so that refusals leave time for answers.

A refusal costs this process 24 to 50 microseconds, half of it in the kernel. Clients that ignore
`Retry-After` can cause so many refusals that the event loop has no time left for answers. So past a
rate the service stops reading the connection that it has just refused. That connection rests: its
next request waits in the kernel, which costs nothing. The service reads it again when its turn
comes, or earlier where the queue is short. `Retry-After` announces this wait, so a client that
heeds it hardly waits longer. Measurements: docs/decisions/0024.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from uvicorn.protocols.http.flow_control import FlowControl

REFUSALS_PER_S: Final = 5_000.0
"""Refusals a second before connections rest. A compromise that decision 0024 measured: a higher
rate leaves less time for answers, a lower one makes clients with few connections wait."""

BURST: Final = 500.0
"""Refusals at once before connections rest. A choice: a tenth of a second's worth, so that a short
peak makes no connection rest."""

LONGEST_S: Final = 5.0
"""No connection rests longer. A choice: its client may have gone or may now be welcome, and only
reading tells."""

TICK_S: Final = 0.01
"""How often resting connections are looked at. A choice: a longer tick leaves lanes idle, a shorter
one costs the loop more turns."""

WAKE_PER_TICK: Final = 50
"""Connections that are read again in one tick where the queue is short: about as many requests as
the measured bundle answers in a tick (4,500 a second, decision 0024)."""


class Resting:
    """Counts refusals, and holds the connections that rest. For the event loop's thread.

    `queue_is_short` says whether a new request would be answered soon.
    """

    __slots__ = ("_allowance", "_queue_is_short", "_refilled_s", "_resting", "_stopped", "_timer")

    def __init__(self, queue_is_short: Callable[[], bool]) -> None:
        self._queue_is_short = queue_is_short
        self._allowance = BURST  # a token bucket: refusals that need no rest
        self._refilled_s = 0.0
        self._resting: deque[tuple[float, FlowControl]] = deque()  # oldest first
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def __len__(self) -> int:
        return len(self._resting)

    @property
    def wait_s(self) -> float:
        """Seconds that a connection rests if it begins now, behind all that rest already."""
        return min(LONGEST_S, len(self._resting) / REFUSALS_PER_S)

    def on_refused(self, flow: FlowControl) -> bool:
        """Count a refusal on this connection, and return whether the connection now rests."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._refill(now)
        self._allowance -= 1.0
        if self._allowance >= 0 or self._stopped:
            return False
        flow.pause_reading()
        self._resting.append((now, flow))
        if self._timer is None:
            self._timer = loop.call_later(TICK_S, self._tick, loop)
        return True

    def stop(self) -> None:
        """Read every connection again, and let none rest from now on."""
        self._stopped = True
        while self._resting:
            self._resting.pop()[1].resume_reading()

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._wake(loop.time())
        finally:  # whatever one connection raised, the others must not rest for ever
            self._timer = loop.call_later(TICK_S, self._tick, loop) if self._resting else None

    def _wake(self, now: float) -> None:
        self._refill(now)
        resting = self._resting
        if self._queue_is_short():
            # The newest first: their requests have waited least, so most can still be answered.
            for _ in range(min(WAKE_PER_TICK, len(resting))):
                resting.pop()[1].resume_reading()
        n_due = int(self._allowance)
        while resting and (n_due > 0 or now - resting[0][0] >= LONGEST_S):
            resting.popleft()[1].resume_reading()
            n_due -= 1

    def _refill(self, now: float) -> None:
        gained = REFUSALS_PER_S * (now - self._refilled_s)
        self._allowance = min(BURST, self._allowance + gained)
        self._refilled_s = now
