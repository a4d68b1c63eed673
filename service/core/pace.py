"""Pace: how fast the lanes and the loop have worked lately, so that a wait can be foretold.

Numbers that every batch moves a little. They err towards letting work in: until a batch
was measured nothing is foretold, one slow batch moves each by a bounded step, and a rate is lowered
only by batches that left work behind or are among the large ones of late, since a small batch says
little about a full one.

Where HTTP and not computing is the bottleneck, requests queue before anybody has seen them: in
sockets, and as tasks that wait for their turn. What that takes shows in the lag, the time from the
end of a computation until the loop takes notice. It is forgotten as soon as nothing confirms it.
"""

import math
from typing import Final

RATE_STEP: Final = 0.2
SLOWER_STEP: Final = 0.25
FASTER_STEP: Final = 0.03
"""A time moves eight times as far towards a slower batch as towards a faster one: near the top."""

MOST_SLOWER: Final = 4.0
"""A batch counts as at most this many times as slow as expected."""

MARGIN: Final = 0.7
LARGE_KEPT: Final = 0.98
DOUBT: Final = 0.9
LAG_STEP: Final = 0.5
LAG_KEPT_S: Final = 0.25
LATE_S: Final = 0.02
LAG_TURNS: Final = 3
"""A request meets the loop's lag this often: to be read, to be begun, and to be answered."""


class Pace:
    """Tokens a second over all lanes, and how long one batch computes; 0 before any batch."""

    __slots__ = (
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
        self._lag_s = self._lag_at_s = 0.0

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

    def noticed(self, now: float, lag_s: float) -> None:
        """The loop took notice of a computation's end, this long after it."""
        self._lag_s = self.lag_s(now) + LAG_STEP * (lag_s - self.lag_s(now))
        self._lag_at_s = now

    def lag_s(self, now: float) -> float:
        """How late the loop is now with whatever it has to do; 0 where that is not known."""
        fresh = now - self._lag_at_s < LAG_KEPT_S + self._lag_s
        return self._lag_s if fresh else 0.0

    def loop_is_late(self, now: float) -> bool:
        """Whether the loop lags so much that a free lane alone does not mean that there is time."""
        return self.lag_s(now) > LATE_S

    def doubt(self) -> None:
        """Expect less: all work was given up on this word, so nothing else could correct it."""
        self.least_compute_s *= DOUBT
