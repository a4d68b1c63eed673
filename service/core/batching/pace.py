"""Pace: estimates how fast the lanes and the event loop work, so that admission can predict waits.

Every batch moves the estimates a little. They err towards admitting work. Before the first batch
there is no estimate. One slow batch moves each estimate by a bounded step. A batch lowers the rate
only if jobs still waited when it ended or if it is one of the large recent ones, because a small
batch says little about a full one.

If HTTP and not computing is the bottleneck, requests queue where the batcher cannot see them: in
sockets, and as tasks that wait for their turn. The lag shows that queue. It is the time from the
end of a computation until the event loop handles it. A lag counts only if a second computation,
begun after the first was handled, confirms it: a loop that stalled once is not always late.
docs/decisions/0022 gives the reasons.
"""

import math
from typing import Final

RATE_STEP: Final = 0.2
"""The rate moves this share of the way to the newest batch's, so one stall lowers it by at most a
fifth. A trade-off, near the eighth of TCP's smoothed round-trip time (RFC 6298)."""

SLOWER_STEP: Final = 0.25
FASTER_STEP: Final = 0.03
"""A time estimate moves eight times as far towards a slower batch as towards a faster one. It
settles at the expectile 0.25 / (0.25 + 0.03) = 0.89 of the batch times, so few batches take much
longer. A trade-off: a higher expectile refuses more, a lower one answers more too late."""

MAX_SLOWDOWN: Final = 4.0
"""A batch counts as at most this many times slower than the estimate. A trade-off: with
`SLOWER_STEP` one stall raises the estimate to at most 1.75 times its value, and a real slowdown
still shows after a few batches."""

MARGIN: Final = 0.7
"""Share of the estimated tokens that a batch may hold. At 1 a batch would be cut to the mean rate,
and half of such batches would be late. A trade-off: a smaller share makes smaller batches."""

LARGE_DECAY: Final = 0.98
"""The size of the largest recent batch shrinks by this factor with each batch, so it remembers
about fifty. A trade-off: longer memory survives a lull, shorter memory adapts to shorter texts."""

DOUBT: Final = 0.9
"""Factor on the least compute time when a lane drops every job that it took. A trade-off: seven
such rounds halve the estimate, so a wrong one corrects itself."""

INTERVAL_S: Final = 1.0
"""How many seconds a lag counts. It must be longer than one turn of the event loop, or the service
would forget an overload between two batches: reading 3,000 connections takes about 250 ms
(docs/decisions/0024)."""

LAG_TURNS: Final = 3
"""How often a request waits for the event loop: to be read, to be started, to be answered."""


class Pace:
    """Tokens a second over all lanes, and seconds that one batch computes; 0 before any batch."""

    __slots__ = (
        "_earlier_lag_s",
        "_lag_at_s",
        "_lag_s",
        "_lanes",
        "_large",
        "compute_s",
        "least_compute_s",
        "tokens_per_s",
    )

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self.tokens_per_s = 0.0
        self.compute_s = 0.0
        """High estimate: few batches compute for longer."""
        self.least_compute_s = 0.0
        """Low estimate: few batches compute for less."""
        self._large = 0.0
        self._lag_s = self._earlier_lag_s = 0.0
        self._lag_at_s = -math.inf

    def record_batch(self, tokens: int, seconds: float, more_waiting: bool) -> None:
        """Update the estimates with one batch that one lane computed in `seconds`.

        `more_waiting` says that jobs of its class still waited when it ended.
        """
        seconds = max(seconds, 1e-6)
        rate = tokens * self._lanes / seconds
        if not self.tokens_per_s:
            self.tokens_per_s = rate
            self.compute_s = self.least_compute_s = seconds
            return
        self._large = max(tokens, LARGE_DECAY * self._large)
        if more_waiting or 2 * tokens >= self._large or rate > self.tokens_per_s:
            self.tokens_per_s += RATE_STEP * (rate - self.tokens_per_s)
        seconds = min(seconds, MAX_SLOWDOWN * self.compute_s)
        slower = seconds > self.compute_s
        self.compute_s += (SLOWER_STEP if slower else FASTER_STEP) * (seconds - self.compute_s)
        slower = seconds > self.least_compute_s
        step = FASTER_STEP if slower else SLOWER_STEP
        self.least_compute_s += step * (seconds - self.least_compute_s)

    def compute_s_of(self, tokens: float) -> float:
        """High estimate in seconds for a batch of this many tokens; 0 before any batch.

        It is never below `compute_s`.
        """
        if not self.tokens_per_s:
            return 0.0
        return max(self.compute_s, tokens * self._lanes / self.tokens_per_s)

    def tokens_within(self, seconds: float) -> float:
        """Tokens that one lane computes in this time, less a margin; inf before any batch."""
        if not self.tokens_per_s:
            return math.inf
        return max(0.0, seconds) * MARGIN * self.tokens_per_s / self._lanes

    def record_notice(self, now: float, started_s: float, finished_s: float) -> None:
        """Measure the lag: at `now` the event loop handles a computation that ran in this time."""
        lag_s = now - finished_s
        if started_s < self._lag_at_s:  # one stall may have delayed both, so the lesser counts
            self._lag_s = min(self._lag_s, lag_s)
            return
        self._earlier_lag_s = self._lag_s if now - self._lag_at_s < INTERVAL_S else 0.0
        self._lag_s, self._lag_at_s = lag_s, now

    def lag_s(self, now: float) -> float:
        """How late the event loop is with its work, in seconds; 0 without a confirmed lag.

        It is the lesser of the last two lags. The second computation began after the first was
        handled, so a single stall cannot cause both. The minimum tells a standing queue from a
        stall, as in CoDel (Nichols and Jacobson, 2012).
        """
        if now - self._lag_at_s >= INTERVAL_S:
            return 0.0
        return min(self._lag_s, self._earlier_lag_s)

    def doubt(self) -> None:
        """Lower the least compute time: a lane dropped all its jobs because of this estimate.

        No batch was computed, so no measurement could correct it.
        """
        self.least_compute_s *= DOUBT
