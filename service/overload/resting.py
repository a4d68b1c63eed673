"""Resting: connections that nobody reads for a while, so that refusing never takes the whole loop.

A refusal costs this process about 50 microseconds, half of them the kernel's. Clients that ignore
`Retry-After` can ask for more of them than there is time, and then nothing is answered any more. So
past a rate the connection that was just refused is left unread: its next request waits in the
kernel, which costs nothing. It is read again in its turn, or sooner where the queue runs low.
`Retry-After` foretells that turn, so who heeds it hardly waits.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from uvicorn.protocols.http.flow_control import FlowControl

REFUSALS_PER_S: Final = 5_000.0
"""More would save clients with few connections their wait, fewer leave more time for answers."""

BURST: Final = 500.0
"""Refusals at once before any connection rests."""

LONGEST_S: Final = 5.0
TICK_S: Final = 0.01
WOKEN_FOR_WORK: Final = 50
"""Connections read again in one tick where the queue runs low: about a tick's answers."""


class Resting:
    """Counts refusals, and holds the connections that are not read; all on the event loop.

    `runs_low` says whether what waits will soon be done.
    """

    __slots__ = ("_allowed", "_at_s", "_ended", "_resting", "_runs_low", "_timer")

    def __init__(self, runs_low: Callable[[], bool]) -> None:
        self._runs_low = runs_low
        self._allowed = BURST
        self._at_s = 0.0
        self._resting: deque[tuple[float, FlowControl]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False

    def __len__(self) -> int:
        return len(self._resting)

    @property
    def turn_s(self) -> float:
        """How long a connection will rest from now on, by the number of those before it."""
        return min(LONGEST_S, len(self._resting) / REFUSALS_PER_S)

    def refused(self, flow: FlowControl) -> bool:
        """One request was refused on this connection: whether it rests for that."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._refill(now)
        self._allowed -= 1.0
        if self._allowed >= 0 or self._ended:
            return False
        flow.pause_reading()
        self._resting.append((now, flow))
        if self._timer is None:
            self._timer = loop.call_later(TICK_S, self._tick, loop)
        return True

    def end(self) -> None:
        """Read every connection again, and let none rest any more."""
        self._ended = True
        while self._resting:
            self._resting.pop()[1].resume_reading()

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self._refill(now)
        resting = self._resting
        if self._runs_low():
            # The newest, for their requests have lain there shortest: most can still be answered.
            for _ in range(min(WOKEN_FOR_WORK, len(resting))):
                resting.pop()[1].resume_reading()
        due = int(self._allowed)
        while resting and (due > 0 or now - resting[0][0] >= LONGEST_S):
            resting.popleft()[1].resume_reading()
            due -= 1
        self._timer = loop.call_later(TICK_S, self._tick, loop) if resting else None

    def _refill(self, now: float) -> None:
        self._allowed = min(BURST, self._allowed + REFUSALS_PER_S * (now - self._at_s))
        self._at_s = now
