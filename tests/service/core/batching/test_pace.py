import pytest

from service.core.batching.pace import Pace


def measured(*batches: tuple[int, float, bool], lanes: int = 1) -> Pace:
    pace = Pace(lanes)
    for tokens, seconds, more_waiting in batches:
        pace.record_batch(tokens, seconds, more_waiting)
    return pace


def test_nothing_is_foretold_before_a_batch() -> None:
    assert (Pace(2).tokens_per_s, Pace(2).compute_s, Pace(2).least_compute_s) == (0.0, 0.0, 0.0)


def test_first_batch_is_believed_on_every_lane() -> None:
    pace = measured((100, 0.5, False), lanes=3)
    assert (pace.tokens_per_s, pace.compute_s) == (600.0, 0.5)


def test_a_small_batch_does_not_make_a_full_one_look_slow() -> None:
    full = [(1000, 0.1, True)] * 5
    small = [(5, 0.01, False)] * 50
    assert measured(*full, *small).tokens_per_s == pytest.approx(10_000)


def test_full_batches_that_slow_down_lower_the_rate() -> None:
    pace = measured(*[(1000, 0.1, True)] * 5, *[(1000, 0.2, True)] * 30)
    assert pace.tokens_per_s == pytest.approx(5_000, rel=0.05)


def test_one_stall_moves_no_number_far_and_is_forgotten() -> None:
    before = [(1000, 0.1, True)] * 5
    stalled = measured(*before, (1000, 60.0, True))
    assert stalled.tokens_per_s > 0.75 * 10_000
    assert stalled.compute_s < 0.2
    after = measured(*before, (1000, 60.0, True), *[(1000, 0.1, True)] * 60)
    assert after.compute_s == pytest.approx(0.1, rel=0.2)


def test_times_lie_near_the_slowest_and_the_fastest() -> None:
    pace = measured(*[(100, 0.01 if i % 2 else 0.03, True) for i in range(400)])
    assert 0.025 < pace.compute_s < 0.03
    assert 0.01 < pace.least_compute_s < 0.015


def test_doubt_lets_work_in_again() -> None:
    pace = measured((100, 9.0, True))
    for _ in range(100):
        pace.doubt()
    assert pace.least_compute_s < 0.001
