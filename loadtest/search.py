"""Finds the highest rate that holds, by doubling, bisection and one more run that confirms it.

The search knows nothing of HTTP: it calls `measure(rate, phase)`, which says whether a rate holds.
A rate that fails while doubling is the upper bound of the whole search. It must therefore fail
twice.
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
    """Bounds, precision and budget of a search; rates are queries per second."""

    start_rate: float
    max_rate: float
    min_rate: float
    seconds_per_step: float  # a step at a low rate takes longer: see enough_seconds
    max_seconds: float
    tolerance: float = 0.05  # the search ends when the failing rate is this share above the holding
    max_steps: int = 40  # a choice: far above the 15 or so steps that doubling and bisection take


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """The highest rate that held, None where none did; `stop_reason` is a phrase for the report."""

    rate: float | None
    confirmed: bool
    stop_reason: str


class _BudgetSpent(Exception):
    """The search has no time or no steps left."""


class _Search:
    def __init__(self, measure: Measure, limits: SearchLimits, clock: Callable[[], float]) -> None:
        self._measure = measure
        self._limits = limits
        self._clock = clock
        self._began_s = clock()
        self._n_steps = 0
        self.low: float | None = None  # the highest rate that held
        self.high: float | None = None  # the lowest rate that failed

    def run(self) -> SearchOutcome:
        self._bracket()
        if self.low is None:
            return SearchOutcome(
                None, False, f"not even {self.high:g}/s held; try a lower --start-rate"
            )
        self.low = self._bisect(self.low)
        at_max = self.high is None
        if not self._confirm():
            return SearchOutcome(None, False, "no rate held when it was run again")
        return SearchOutcome(
            self.low, True, "--max-rate was reached" if at_max else "within tolerance"
        )

    def _bracket(self) -> None:
        limits, rate = self._limits, self._limits.start_rate
        if not self._holds_in_two_tries(rate, "grow"):
            self.high = rate
            while self.low is None and rate > limits.min_rate:
                rate = _round_rate(max(rate / 2, limits.min_rate))
                if self._holds(rate, "shrink"):
                    self.low = rate
                else:
                    self.high = rate
            return
        self.low = rate
        while self.high is None and self.low < limits.max_rate:
            rate = _round_rate(min(self.low * 2, limits.max_rate))
            if self._holds_in_two_tries(rate, "grow"):
                self.low = rate
            else:
                self.high = rate

    def _bisect(self, low: float) -> float:
        while self.high is not None and self.high > low * (1 + self._limits.tolerance):
            middle = _round_rate(math.sqrt(low * self.high))  # geometric: the tolerance is a ratio
            if not low < middle < self.high:
                break
            if self._holds(middle, "bisect"):
                self.low = low = middle
            else:
                self.high = middle
        return low

    def _confirm(self) -> bool:
        """Run the highest rate that held again, and lower rates until one holds."""
        while self.low is not None and self.low >= self._limits.min_rate:
            if self._holds(self.low, "confirm"):
                return True
            self.high = self.low
            self.low = _round_rate(self.low * (1 - self._limits.tolerance))
        return False

    def _holds_in_two_tries(self, rate: float, phase: Phase) -> bool:
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
) -> SearchOutcome:
    """Return the highest rate from min_rate to max_rate at which `measure` is true.

    >>> limits = SearchLimits(100, 10_000, 10, seconds_per_step=1, max_seconds=1000)
    >>> find_rate(lambda rate, phase: rate <= 777, limits, clock=lambda: 0.0)
    SearchOutcome(rate=766.1, confirmed=True, stop_reason='within tolerance')
    """
    search = _Search(measure, limits, clock)
    try:
        return search.run()
    except _BudgetSpent:
        return SearchOutcome(search.low, False, "the budget was spent; raise --max-seconds")


def _round_rate(rate: float) -> float:
    return float(f"{rate:.4g}")
