"""Finds the highest rate that holds: doubling, then bisection, then one more run to confirm it.

Knows nothing of HTTP or clocks: `measure(rate, phase)` says whether a rate holds. A failure while
doubling bounds everything after it, so it has to happen twice to be believed.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from loadtest.plan import enough_seconds

Phase = Literal["grow", "shrink", "bisect", "confirm"]
Measure = Callable[[float, Phase], bool]


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """Where to look, how closely, and when to stop."""

    start_rate: float
    max_rate: float
    min_rate: float
    seconds_per_step: float  # at least: see enough_seconds
    max_seconds: float
    tolerance: float = 0.05  # stop when the failing rate is at most this share above the holding
    max_steps: int = 40


@dataclass(frozen=True, slots=True)
class Found:
    """What the search came to; `stopped` is a phrase for the report."""

    rate: float | None
    confirmed: bool
    stopped: str


class _BudgetSpent(Exception):
    """No step may be started any more."""


class _Search:
    def __init__(self, measure: Measure, limits: SearchLimits, clock: Callable[[], float]) -> None:
        self._measure = measure
        self._limits = limits
        self._clock = clock
        self._began_s = clock()
        self._n_steps = 0
        self.low: float | None = None  # the highest rate that held
        self.high: float | None = None  # the lowest rate that failed

    def run(self) -> Found:
        self._bracket()
        if self.low is None:
            return Found(None, False, f"not even {self.high:g}/s held; try a lower --start-rate")
        self.low = self._bisect(self.low)
        at_max = self.high is None
        if not self._confirm():
            return Found(None, False, "no rate held when it was run again")
        return Found(self.low, True, "--max-rate was reached" if at_max else "within tolerance")

    def _bracket(self) -> None:
        limits, rate = self._limits, self._limits.start_rate
        if not self._holds_in_two(rate, "grow"):
            self.high = rate
            while self.low is None and rate > limits.min_rate:
                rate = _neat(max(rate / 2, limits.min_rate))
                if self._holds(rate, "shrink"):
                    self.low = rate
                else:
                    self.high = rate
            return
        self.low = rate
        while self.high is None and self.low < limits.max_rate:
            rate = _neat(min(self.low * 2, limits.max_rate))
            if self._holds_in_two(rate, "grow"):
                self.low = rate
            else:
                self.high = rate

    def _bisect(self, low: float) -> float:
        while self.high is not None and self.high > low * (1 + self._limits.tolerance):
            middle = _neat(math.sqrt(low * self.high))  # rates are compared by ratio
            if not low < middle < self.high:
                break
            if self._holds(middle, "bisect"):
                self.low = low = middle
            else:
                self.high = middle
        return low

    def _confirm(self) -> bool:
        """Run the rate again, stepping down until one holds."""
        while self.low is not None and self.low >= self._limits.min_rate:
            if self._holds(self.low, "confirm"):
                return True
            self.high = self.low
            self.low = _neat(self.low * (1 - self._limits.tolerance))
        return False

    def _holds_in_two(self, rate: float, phase: Phase) -> bool:
        return self._holds(rate, phase) or self._holds(rate, phase)

    def _holds(self, rate: float, phase: Phase) -> bool:
        end_s = self._clock() - self._began_s + enough_seconds(rate, self._limits.seconds_per_step)
        out_of_time = end_s > self._limits.max_seconds
        if out_of_time or self._n_steps >= self._limits.max_steps:
            raise _BudgetSpent
        self._n_steps += 1
        return self._measure(rate, phase)


def find_rate(
    measure: Measure, limits: SearchLimits, clock: Callable[[], float] = time.monotonic
) -> Found:
    """Return the highest rate between min_rate and max_rate that `measure` says holds.

    >>> limits = SearchLimits(100, 10_000, 10, seconds_per_step=1, max_seconds=1000)
    >>> find_rate(lambda rate, phase: rate <= 777, limits, clock=lambda: 0.0)
    Found(rate=766.1, confirmed=True, stopped='within tolerance')
    """
    search = _Search(measure, limits, clock)
    try:
        return search.run()
    except _BudgetSpent:
        return Found(search.low, False, "the budget was spent; raise --max-seconds")


def _neat(rate: float) -> float:
    return float(f"{rate:.4g}")
