"""Pace: how fast the lanes and the loop have worked lately, so that a wait can be foretold.

Numbers that every batch moves a little. They err towards letting work in: until a batch
was measured nothing is foretold, one slow batch moves each by a bounded step, and a rate is lowered
only by batches that left work behind or are among the large ones of late, since a small batch says
little about a full one.

Where HTTP and not computing is the bottleneck, requests queue before anybody has seen them: in
sockets, and as tasks that wait for their turn. What that takes shows in the lag, the time from the
end of a computation until the loop takes notice. A lag counts only once a second computation, begun
after the first was noticed, confirms it: a loop that stood still once is not a loop that is late.
"""

import math
from typing import Final

RATE_STEP: Final = 0.2
"""Share of the way to the newest batch, so one stall lowers the rate by at most a fifth. A
trade-off, near that of TCP's smoothed round-trip time (an eighth, RFC 6298)."""

SLOWER_STEP: Final = 0.25
FASTER_STEP: Final = 0.03
"""A time moves eight times as far towards a slower batch as towards a faster one. It rests at the
expectile of 0.25 / (0.25 + 0.03) = 0.89: near the top."""

MOST_SLOWER: Final = 4.0
"""A batch counts as at most this many times as slow as expected. A trade-off: with `SLOWER_STEP`
one stall makes at most 1.75 of the expected time, and a real slowdown is soon followed."""

MARGIN: Final = 0.7
"""Share of the foretold tokens that is promised: of batches cut to the mean rate half are late."""

LARGE_KEPT: Final = 0.98
"""A batch counts as large against those of about the last fifty. A trade-off: over a lull a full
batch is remembered, and texts that became shorter for good are believed in the end."""

DOUBT: Final = 0.9
"""A trade-off: after seven batches given up a foretold time has halved."""

INTERVAL_S: Final = 1.0
"""How long a notice counts. It must outlast a turn of the loop, or an overload would be forgotten
between two notices: to read 3,000 connections takes about 250 ms (decision 24)."""

LAG_TURNS: Final = 3
"""A request meets the loop's lag this often: to be read, to be begun, and to be answered."""


class Pace:
    """Tokens a second over all lanes, and how long one batch computes; 0 before any batch."""

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
        """A batch seldom computes for longer."""
        self.least_compute_s = 0.0
        """A batch seldom computes for less."""
        self._large = 0.0
        self._lag_s = self._earlier_lag_s = 0.0
        self._lag_at_s = -math.inf

    def measured(self, tokens: int, seconds: float, left_behind: bool) -> None:
        """One batch of this many tokens was computed on one lane."""
        seconds = max(seconds, 1e-6)
        rate = tokens * self._lanes / seconds
        if not self.tokens_per_s:
            self.tokens_per_s = rate
            self.compute_s = self.least_compute_s = seconds
            return
        self._large = max(tokens, LARGE_KEPT * self._large)
        if left_behind or 2 * tokens >= self._large or rate > self.tokens_per_s:
            self.tokens_per_s += RATE_STEP * (rate - self.tokens_per_s)
        seconds = min(seconds, MOST_SLOWER * self.compute_s)
        slower = seconds > self.compute_s
        self.compute_s += (SLOWER_STEP if slower else FASTER_STEP) * (seconds - self.compute_s)
        slower = seconds > self.least_compute_s
        step = FASTER_STEP if slower else SLOWER_STEP
        self.least_compute_s += step * (seconds - self.least_compute_s)

    def compute_s_of(self, tokens: float) -> float:
        """How long a batch of this many tokens may compute: longer than usual if it is larger."""
        if not self.tokens_per_s:
            return 0.0
        return max(self.compute_s, tokens * self._lanes / self.tokens_per_s)

    def tokens_within(self, seconds: float) -> float:
        """Tokens that one lane computes in this time, with a margin; inf where nothing is known."""
        if not self.tokens_per_s:
            return math.inf
        return max(0.0, seconds) * MARGIN * self.tokens_per_s / self._lanes

    def noticed(self, now: float, started_s: float, finished_s: float) -> None:
        """The loop took notice of a computation that ran between these times."""
        lag_s = now - finished_s
        if started_s < self._lag_at_s:  # the same stall may have hit both
            self._lag_s = min(self._lag_s, lag_s)
            return
        self._earlier_lag_s = self._lag_s if now - self._lag_at_s < INTERVAL_S else 0.0
        self._lag_s, self._lag_at_s = lag_s, now

    def lag_s(self, now: float) -> float:
        """How late the loop is with whatever it has to do, in seconds; 0 where nothing confirms it.

        The least of the last notices, of which one began after the other was taken: what one stall
        delayed is no standing queue (Nichols and Jacobson, CoDel, 2012).
        """
        if now - self._lag_at_s >= INTERVAL_S:
            return 0.0
        return min(self._lag_s, self._earlier_lag_s)

    def doubt(self) -> None:
        """Expect less: all work was given up on this word, so nothing else could correct it."""
        self.least_compute_s *= DOUBT
