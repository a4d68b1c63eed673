import logging
import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.manifest import OperatingPoint
from service.core.batching.adaptive_effort import MAX_HOLDS, AdaptiveEffort, EffortPolicy, steps_of
from service.core.types import Query
from tests.support.fakes import FakeClock

POLICY = EffortPolicy(target_s=0.02, clear_s=0.005, interval_s=0.5, hold_s=5.0)
SLOW_S, BETWEEN_S, QUICK_S = 0.1, 0.01, 0.001
BATCH_S = 0.05


def point(name: str, cost_us: float, recall: float) -> OperatingPoint:
    return OperatingPoint(
        name=name,
        params={},
        recall_at_10=recall,
        p_at_1=1.0,
        p_at_5=1.0,
        search_us_p50=cost_us,
        search_us_p99=cost_us,
        machine="test",
    )


POINTS = [
    point("fast", 75.0, 0.95),
    point("balanced", 286.0, 0.99),
    point("thorough", 768.0, 0.999),
    point("exact", 380.0, 1.0),
]
COSTS = {item.name: item.search_us_p50 for item in POINTS}


class Bench:
    """A ceiling, its clock, and batches that come at regular times."""

    def __init__(self, points: Sequence[OperatingPoint] = POINTS) -> None:
        self.clock = FakeClock()
        self.effort = AdaptiveEffort(points, POLICY, self.clock)

    @property
    def ceiling(self) -> str:
        return self.effort.steps[-1 - self.effort.steps_down(0.0)]

    def batch(self, wait_s: float, asked: str = "thorough", strict: bool = False) -> str:
        """One batch of one query; the effort that it gets."""
        self.effort.record_wait(wait_s)
        query = Query("a", 3, asked, effort_strict=strict)
        (got,) = self.effort.cap([query])
        return got.effort

    def batches(
        self, wait_s: float, seconds: float, asked: str = "thorough", strict: bool = False
    ) -> list[str]:
        """What batches every `BATCH_S` for so long get."""
        got = []
        for _ in range(round(seconds / BATCH_S)):
            self.clock.advance(BATCH_S)
            got.append(self.batch(wait_s, asked, strict))
        return got


def runs(names: Sequence[str]) -> list[str]:
    """The names without repetitions in a row."""
    return [name for i, name in enumerate(names) if i == 0 or name != names[i - 1]]


def test_steps_go_by_measured_cost_and_not_by_name() -> None:
    assert [step.name for step in steps_of(POINTS)] == ["fast", "balanced", "exact", "thorough"]


def test_a_point_that_finds_less_than_a_cheaper_one_is_no_step() -> None:
    points = [point("fast", 75, 0.95), point("exact", 70, 1.0), point("balanced", 90, 0.99)]
    assert [step.name for step in steps_of(points)] == ["exact", "balanced"]  # the last lowers none


def test_points_that_cost_the_same_leave_nothing_to_lower() -> None:
    bench = Bench([point("fast", 10.0, 0.9), point("exact", 10.0, 1.0)])
    assert set(bench.batches(SLOW_S, 9.0, "exact")) == {"exact"}
    assert bench.effort.steps == ["exact"]


def test_full_effort_while_nothing_waits() -> None:
    bench = Bench()
    for asked in COSTS:
        assert set(bench.batches(QUICK_S, 5.0, asked)) == {asked}


def test_sustained_delay_lowers_one_step_at_a_time_an_interval_apart() -> None:
    bench = Bench()
    got = bench.batches(SLOW_S, 3.0)
    assert runs(got) == ["thorough", "exact", "balanced", "fast"]
    per_interval = round(POLICY.interval_s / BATCH_S)
    assert all(got.count(name) >= per_interval for name in ("thorough", "exact", "balanced"))


def test_steps_that_nobody_would_feel_are_skipped() -> None:
    bench = Bench()
    got = bench.batches(SLOW_S, 0.6, "balanced")
    assert runs(got) == ["balanced", "fast"]


def test_a_single_spike_does_nothing() -> None:
    bench = Bench()
    for _ in range(20):
        bench.batches(QUICK_S, POLICY.interval_s)
        assert bench.batch(100 * SLOW_S) == "thorough"
        bench.clock.advance(BATCH_S)
    assert bench.effort.steps_down(0.0) == 0


def test_two_slow_batches_with_an_empty_queue_between_are_two_spikes() -> None:
    bench = Bench()
    for _ in range(20):
        bench.clock.advance(POLICY.interval_s + 2 * SLOW_S)
        assert bench.batch(SLOW_S) == "thorough"


def test_one_quick_batch_within_the_interval_breaks_it() -> None:
    bench = Bench()
    for _ in range(20):
        bench.batches(SLOW_S, POLICY.interval_s - BATCH_S)
        bench.batches(QUICK_S, BATCH_S)
    assert bench.ceiling == "thorough"


def test_effort_comes_back_one_step_a_hold_once_the_queue_clears() -> None:
    bench = Bench()
    bench.batches(SLOW_S, 3.0)
    got = bench.batches(QUICK_S, 4 * POLICY.hold_s)
    assert runs(got) == ["fast", "balanced", "exact", "thorough"]
    assert got.count("fast") == pytest.approx(POLICY.hold_s / BATCH_S, abs=1)
    assert got.count("balanced") == pytest.approx(POLICY.hold_s / BATCH_S, abs=1)


@pytest.mark.parametrize("calm_s", [0.0, 1.3 * POLICY.hold_s, 10.1 * POLICY.hold_s])
def test_full_effort_is_no_trial_that_could_fail(calm_s: float) -> None:
    bench = Bench()
    bench.batches(QUICK_S, calm_s)
    bench.batches(SLOW_S, POLICY.interval_s + 2 * BATCH_S)
    got = bench.batches(QUICK_S, 2 * POLICY.hold_s)
    assert runs(got) == ["exact", "thorough"]
    assert got.count("exact") == pytest.approx(POLICY.hold_s / BATCH_S, abs=1)


def test_a_trial_undone_by_several_steps_still_counts_as_undone() -> None:
    bench = Bench()
    bench.batches(SLOW_S, 1.2)
    assert bench.batches(QUICK_S, POLICY.hold_s + BATCH_S)[-1] == "exact"  # a trial
    assert bench.batches(SLOW_S, 2.5)[-1] == "fast"
    got = bench.batches(QUICK_S, 3 * POLICY.hold_s)
    assert got.count("fast") == pytest.approx(2 * POLICY.hold_s / BATCH_S, abs=1)


def test_between_the_thresholds_nothing_moves() -> None:
    bench = Bench()
    assert set(bench.batches(BETWEEN_S, 60.0)) == {"thorough"}
    bench.batches(SLOW_S, 1.0)
    lowered = bench.ceiling
    assert lowered != "thorough"
    assert set(bench.batches(BETWEEN_S, 60.0)) == {lowered}


def test_delay_around_the_target_does_not_make_it_flap() -> None:
    bench = Bench()
    got = []
    for _ in range(600):  # a minute
        got += bench.batches(1.1 * POLICY.target_s, BATCH_S)
        got += bench.batches(0.9 * POLICY.target_s, BATCH_S)
    assert runs(got) == ["thorough"]


def test_spikes_do_not_keep_effort_low() -> None:
    bench = Bench()
    bench.batches(SLOW_S, 3.0)
    for _ in range(20):
        bench.batches(QUICK_S, 0.95)
        bench.batches(SLOW_S, BATCH_S)
    assert bench.ceiling == "thorough"


@pytest.mark.parametrize("pause_s", [POLICY.hold_s + SLOW_S, 3600.0])
def test_an_idle_service_returns_to_full_effort(pause_s: float) -> None:
    bench = Bench()
    bench.batches(SLOW_S, 3.0)
    assert bench.ceiling == "fast"
    bench.clock.advance(pause_s)
    assert bench.ceiling == "thorough"  # seen without any request


def test_the_first_request_after_idle_time_gets_full_effort() -> None:
    bench = Bench()
    bench.batches(SLOW_S, 3.0)
    bench.clock.advance(POLICY.hold_s + SLOW_S)
    assert bench.batch(SLOW_S / 2) == "thorough"


def test_a_queue_that_stands_still_is_not_idle() -> None:
    bench = Bench()
    bench.batches(SLOW_S, 3.0)
    bench.clock.advance(60.0)
    assert bench.effort.steps_down(oldest_wait_s=60.0) == 3
    assert bench.batch(60.0) == "fast"


def test_strict_queries_get_what_they_ask_for_beside_lowered_ones() -> None:
    bench = Bench()
    bench.batches(SLOW_S, 3.0)
    queries = [
        Query("a", 3, "thorough", effort_strict=True),
        Query("b", 3, "thorough", "item"),
        Query("c", 3, "fast"),
    ]
    got = bench.effort.cap(queries)
    assert [query.effort for query in got] == ["thorough", "fast", "fast"]
    assert [(query.text, query.item_id) for query in got] == [
        ("a", None),
        ("b", "item"),
        ("c", None),
    ]


@pytest.mark.parametrize(("asked", "strict"), [("fast", False), ("thorough", True)])
def test_a_ceiling_that_lowers_nobody_stays_where_it_is(asked: str, strict: bool) -> None:
    bench = Bench()
    assert set(bench.batches(SLOW_S, 9.0, asked, strict)) == {asked}
    assert bench.ceiling == "thorough"


def test_every_change_is_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench = Bench()
    bench.batches(SLOW_S, 3.0)
    bench.clock.advance(60.0)
    assert bench.ceiling == "thorough"
    lines = [
        (line.levelname, line.fields["was"], line.fields["ceiling"]) for line in caplog.records
    ]  # type: ignore[attr-defined]
    assert lines == [
        ("WARNING", "thorough", "exact"),
        ("WARNING", "exact", "balanced"),
        ("WARNING", "balanced", "fast"),
        ("INFO", "fast", "thorough"),
    ]
    assert caplog.records[0].fields["waited_ms"] == 100.0  # type: ignore[attr-defined]


# A service of one lane, computing batch after batch: what it needs for a query depends on effort.
QUERY_S = {name: 100e-6 + cost * 1e-6 for name, cost in COSTS.items()}


class Service:
    """Arrivals at a constant rate, a queue, one lane; the ceiling decides what a query costs."""

    def __init__(self, asked: str) -> None:
        self.bench = Bench()
        self.asked = asked
        self.queue: deque[float] = deque()
        self.changes: list[tuple[float, str]] = []
        self._arrived_s = self.bench.clock.now

    def run(self, per_s: float, seconds: float) -> list[float]:
        """Serve this rate for so long; the wait of each batch's oldest request."""
        clock, waits = self.bench.clock, []
        end = clock.now + seconds
        while clock.now < end:
            while self._arrived_s <= clock.now:
                self.queue.append(self._arrived_s)
                self._arrived_s += 1 / per_s
            if not self.queue:
                clock.now = self._arrived_s
                continue
            waits.append(clock.now - self.queue[0])
            got = self.bench.batch(waits[-1], self.asked)
            if not self.changes or self.changes[-1][1] != got:
                self.changes.append((clock.now, got))
            n_queries = min(400, len(self.queue))
            for _ in range(n_queries):
                self.queue.popleft()
            clock.advance(0.001 + n_queries * QUERY_S[got])
        return waits


def test_a_load_below_capacity_is_never_lowered() -> None:
    service = Service("balanced")
    service.run(0.9 / QUERY_S["balanced"], 60.0)
    assert [name for _, name in service.changes] == ["balanced"]


def test_a_load_that_only_a_lower_effort_carries_is_tried_ever_more_rarely() -> None:
    service = Service("balanced")
    per_s = math.sqrt(1 / QUERY_S["balanced"] / QUERY_S["fast"])
    waits = service.run(per_s, 250.0)
    trials = [at for at, name in service.changes if name == "balanced"]
    gaps = [later - sooner for sooner, later in pairwise(trials[1:])]  # the first is the start
    assert all(gap > 1.9 * POLICY.hold_s for gap in gaps)
    assert gaps[-1] > MAX_HOLDS * POLICY.hold_s
    assert sum(wait > POLICY.target_s for wait in waits) < 0.1 * len(waits)


def test_it_recovers_fully_after_any_overload_once_the_load_falls() -> None:
    service = Service("thorough")
    for share in (1.2, 3.0, 0.8, 2.0, 1.05):
        service.run(share / QUERY_S["thorough"], 30.0)
    service.run(0.2 / QUERY_S["thorough"], 2 * MAX_HOLDS * POLICY.hold_s + 3 * POLICY.hold_s)
    assert service.bench.ceiling == "thorough"


waits = st.sampled_from([0.0, QUICK_S, POLICY.clear_s, BETWEEN_S, POLICY.target_s, SLOW_S, 3.0])
gaps = st.sampled_from([0.0, 0.01, BATCH_S, 0.3, POLICY.interval_s, 2.0, POLICY.hold_s, 30.0])
asks = st.sampled_from([item.name for item in POINTS])


class Twin:
    """The rule for steps down, read off the whole history at each batch."""

    def __init__(self) -> None:
        self.history: list[tuple[float, float]] = []  # (when, waited), since the last restart

    def must_lower(self, now: float, wait_s: float) -> bool:
        if self.history and now - wait_s - self.history[-1][0] >= POLICY.interval_s:
            self.history = []  # nothing waited for an interval
        self.history.append((now, wait_s))
        above = []
        for at, waited in reversed(self.history):
            if waited <= POLICY.target_s:
                break
            above.append(at)
        lower = bool(above) and now - above[-1] >= POLICY.interval_s
        if lower:
            self.history = [(now, wait_s)]
        return lower


@given(st.lists(st.tuples(gaps, waits, asks, st.booleans()), max_size=60))
def test_whatever_comes_no_query_costs_more_and_steps_follow_the_rule(
    batches: list[tuple[float, float, str, bool]],
) -> None:
    bench, twin = Bench(), Twin()
    last_s = bench.clock.now
    step, changed_s = len(bench.effort.steps) - 1, -math.inf
    for gap_s, wait_s, asked, strict in batches:
        bench.clock.advance(gap_s)
        now = bench.clock.now
        wait_s = min(wait_s, now - last_s + 3.0)
        got = bench.batch(wait_s, asked, strict)
        assert COSTS[got] <= COSTS[asked]
        assert got == asked or (not strict and got in bench.effort.steps)
        after = bench.effort._step
        must_lower = twin.must_lower(now, wait_s)
        assert after >= step or must_lower
        if after < step:
            assert now - changed_s >= POLICY.interval_s
        if after > step:
            idle = now - wait_s - last_s >= POLICY.hold_s
            assert idle or (after == step + 1 and now - changed_s >= POLICY.hold_s)
        if after != step:
            step, changed_s = after, now
        last_s = now
    bench.clock.advance(POLICY.hold_s)
    assert bench.effort.steps_down(0.0) == 0
