import pytest

from service.gate.rate_limit import RateLimit
from tests.support.fakes import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_a_burst_is_admitted_then_one_for_each_interval(clock: FakeClock) -> None:
    limit = RateLimit(per_s=10, burst=3, clock=clock)
    assert [limit.wait_s("a") for _ in range(3)] == [0, 0, 0]
    assert limit.wait_s("a") == pytest.approx(0.1)
    clock.advance(0.05)
    assert limit.wait_s("a") == pytest.approx(0.05)
    clock.advance(0.05)
    assert limit.wait_s("a") == 0
    assert limit.wait_s("a") == pytest.approx(0.1)


def test_waiting_as_told_is_enough(clock: FakeClock) -> None:
    limit = RateLimit(per_s=7, burst=1, clock=clock)
    for _ in range(1000):
        assert limit.wait_s("a") == 0
        clock.advance(limit.wait_s("a"))


def test_over_a_long_time_the_rate_holds_exactly(clock: FakeClock) -> None:
    limit = RateLimit(per_s=100, burst=20, clock=clock)
    admitted = 0
    for _ in range(10_000):
        clock.advance(0.001)
        admitted += limit.wait_s("a") == 0
    assert admitted == pytest.approx(100 * 10 + 20, abs=1)


def test_refused_requests_take_nothing(clock: FakeClock) -> None:
    limit = RateLimit(per_s=1, burst=1, clock=clock)
    limit.wait_s("a")
    for _ in range(50):
        assert limit.wait_s("a") == pytest.approx(1.0)


def test_callers_do_not_share_and_an_idle_one_gets_no_more_than_its_burst(clock: FakeClock) -> None:
    limit = RateLimit(per_s=1, burst=2, clock=clock)
    assert [limit.wait_s(caller) for caller in "abab"] == [0, 0, 0, 0]
    clock.advance(3600)
    assert [limit.wait_s("a") == 0 for _ in range(4)] == [True, True, False, False]


def test_the_table_stays_bounded_and_keeps_who_asks_most(clock: FakeClock) -> None:
    limit = RateLimit(per_s=1, burst=5, clock=clock, max_callers=100)
    for _ in range(5):
        limit.wait_s("greedy")
    for i in range(10_000):
        limit.wait_s(f"once-{i}")
        assert len(limit) <= 100
    assert limit.wait_s("greedy") > 0


def test_buckets_that_are_full_again_are_forgotten_first(clock: FakeClock) -> None:
    limit = RateLimit(per_s=1, burst=5, clock=clock, max_callers=10)
    for i in range(10):
        limit.wait_s(f"old-{i}")
    clock.advance(60)
    limit.wait_s("new")
    assert len(limit) == 1
