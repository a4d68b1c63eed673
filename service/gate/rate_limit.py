"""RateLimit: how often each caller may ask, as a bucket of tokens that fills at a steady rate.

A caller is one number: the moment at which its bucket will be full again. Each request moves it on
by the time that one token takes to fill; a request is refused where that would be more than a whole
bucket ahead of now. (Known as the generic cell rate algorithm.) Used from the event loop alone.
"""

import heapq
from collections.abc import Callable

MAX_CALLERS = 65536
"""Callers remembered. More, and those with the fullest buckets are forgotten first."""


class RateLimit:
    """`per_s` requests a second for each caller, `burst` of them at once."""

    def __init__(
        self,
        per_s: float,
        burst: int,
        clock: Callable[[], float],
        max_callers: int = MAX_CALLERS,
    ) -> None:
        self._interval_s = 1.0 / per_s
        self._ahead_s = burst * self._interval_s
        self._clock = clock
        self._max_callers = max_callers
        self._full_at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def wait_s(self, caller: str) -> float:
        """Take one token and return 0, or take none and return when there will be one."""
        now = self._clock()
        full_at = self._full_at.get(caller, now)
        full_at = (full_at if full_at > now else now) + self._interval_s
        wait_s = full_at - now - self._ahead_s
        if wait_s > 1e-9:  # what sums of intervals round to
            return wait_s
        self._full_at[caller] = full_at
        if len(self._full_at) > self._max_callers:
            self._forget(now)
        return 0.0

    def _forget(self, now: float) -> None:
        """Drop every full bucket, and of the rest at least half: so it is done rarely."""
        emptiest = heapq.nlargest(
            self._max_callers // 2, self._full_at.items(), key=lambda entry: entry[1]
        )
        self._full_at = {caller: full_at for caller, full_at in emptiest if full_at > now}
