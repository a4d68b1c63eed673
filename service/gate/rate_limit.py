"""RateLimit: how often each caller may call, as a token bucket that fills at a steady rate.

A caller is one number: the moment at which its bucket will be full again. Each request moves that
moment on by the time in which one token flows in. The limit refuses a request that would move it
further ahead of now than a whole bucket takes to fill. This is the generic cell rate algorithm
(ITU-T I.371). Use it from the event loop's thread only.
"""

import heapq
from collections.abc import Callable

MAX_CALLERS = 65536
"""Most callers that the limit remembers. A choice: they take about 8 MB. With more callers it
forgets those with the fullest buckets, who then may call hardly more than before."""


class RateLimit:
    """Each caller may make `per_s` requests a second, and `burst` at once."""

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
        """Take one token and return 0; without a token return the seconds until there is one."""
        now = self._clock()
        full_at = self._full_at.get(caller, now)
        full_at = (full_at if full_at > now else now) + self._interval_s
        wait_s = full_at - now - self._ahead_s
        if wait_s > 1e-9:  # sums of intervals differ by less: rounding
            return wait_s
        self._full_at[caller] = full_at
        if len(self._full_at) > self._max_callers:
            self._forget(now)
        return 0.0

    def _forget(self, now: float) -> None:
        """Forget every full bucket and at least half of the rest, so that this runs rarely."""
        emptiest = heapq.nlargest(
            self._max_callers // 2, self._full_at.items(), key=lambda entry: entry[1]
        )
        self._full_at = {caller: full_at for caller, full_at in emptiest if full_at > now}
