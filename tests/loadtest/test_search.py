"""The search for the highest rate, over made-up services and a made-up clock."""

from collections.abc import Callable

import pytest

from loadtest.search import Phase, SearchLimits, SearchOutcome, find_rate

LIMITS = SearchLimits(100, 20_000, 10, seconds_per_step=1, max_seconds=1e6)


class Bench:
    """Records what was measured; each step takes the time it says on the clock."""

    def __init__(self, holds: Callable[[float], bool], seconds_per_step: float = 1.0) -> None:
        self.steps: list[tuple[Phase, float]] = []
        self.now_s = 0.0
        self._holds = holds
        self._seconds_per_step = seconds_per_step

    def measure(self, rate: float, phase: Phase) -> bool:
        self.steps.append((phase, rate))
        self.now_s += self._seconds_per_step
        return self._holds(rate)

    def find(self, limits: SearchLimits = LIMITS) -> SearchOutcome:
        return find_rate(self.measure, limits, clock=lambda: self.now_s)


@pytest.mark.parametrize("capacity", [11, 99, 100, 640, 5000, 19_999])
def test_the_answer_holds_and_is_within_tolerance(capacity: float):
    bench = Bench(lambda rate: rate <= capacity)
    outcome = bench.find()
    assert outcome.confirmed
    assert outcome.rate is not None
    assert capacity / 1.06 <= outcome.rate <= capacity
    assert bench.steps[-1] == ("confirm", outcome.rate)


def test_a_service_faster_than_max_rate_is_reported_as_such():
    outcome = Bench(lambda rate: True).find()
    assert outcome == SearchOutcome(20_000, True, "--max-rate was reached")


def test_nothing_holds():
    outcome = Bench(lambda rate: False).find()
    assert outcome == SearchOutcome(None, False, "not even 10/s held; try a lower --start-rate")


def test_one_unlucky_step_while_growing_is_forgiven():
    unlucky = {200.0}

    def holds(rate: float) -> bool:
        if rate in unlucky:
            unlucky.remove(rate)
            return False
        return rate <= 1000

    outcome = Bench(holds).find()
    assert outcome.rate is not None
    assert outcome.rate >= 940


def test_a_rate_that_fails_its_confirmation_is_stepped_down_from():
    confirmations: list[float] = []

    def measure(rate: float, phase: Phase) -> bool:
        if phase == "confirm":
            confirmations.append(rate)
            return len(confirmations) == 3
        return rate <= 1000

    outcome = find_rate(measure, LIMITS, clock=lambda: 0.0)
    assert outcome.confirmed
    assert outcome.rate == confirmations[-1] < confirmations[1] < confirmations[0] <= 1000


def test_the_time_budget_is_never_overrun():
    bench = Bench(lambda rate: rate <= 5000, seconds_per_step=10)
    limits = SearchLimits(100, 20_000, 10, seconds_per_step=10, max_seconds=65)
    outcome = bench.find(limits)
    assert bench.now_s <= 65
    assert outcome == SearchOutcome(3200, False, "the budget was spent; raise --max-seconds")


def test_the_number_of_steps_is_bounded():
    bench = Bench(lambda rate: rate <= 5000)
    limits = SearchLimits(100, 20_000, 10, 1, 1e6, tolerance=1e-6, max_steps=9)
    bench.find(limits)
    assert len(bench.steps) == 9


def test_a_tolerance_finer_than_rates_are_told_apart_still_ends():
    outcome = Bench(lambda rate: rate <= 5000).find(
        SearchLimits(100, 20_000, 10, 1, 1e6, tolerance=1e-9, max_steps=1000)
    )
    assert outcome.rate == 5000
    assert outcome.confirmed
