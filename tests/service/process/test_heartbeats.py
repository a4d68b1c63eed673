"""Which workers count as silent, by a clock of the test's own."""

import math

import pytest

from service.process import heartbeats
from service.process.heartbeats import LATE_S, START_S, Heartbeats

SILENCE_S = 15.0


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(heartbeats, "time", clock)
    return clock


@pytest.fixture
def beats(clock: Clock) -> Heartbeats:
    beats = Heartbeats(2, SILENCE_S)
    for number in range(2):
        beats.start(number, clock.now_s)
    return beats


def test_a_worker_has_long_to_tell_first_and_then_its_silence(
    clock: Clock, beats: Heartbeats
) -> None:
    began_s = clock.now_s
    clock.now_s += 100
    beats.beat(1)
    assert beats.silent_at_s(0) == began_s + START_S
    assert beats.silent_at_s(1) == clock.now_s + SILENCE_S


def test_a_new_worker_has_not_told_what_the_dead_one_told(clock: Clock, beats: Heartbeats) -> None:
    beats.beat(0)
    clock.now_s += 100
    beats.start(0, clock.now_s)
    assert beats.silent_at_s(0) == clock.now_s + START_S


@pytest.mark.parametrize("overslept_s", [0.0, LATE_S, LATE_S + 0.01, 1e6])
def test_a_master_that_oversleeps_gives_every_worker_its_full_time_again(
    clock: Clock, beats: Heartbeats, overslept_s: float
) -> None:
    """The whole machine may have stood still, and no worker could tell."""
    for number in range(2):
        beats.beat(number)
    told_s, planned_s = clock.now_s, clock.now_s + 10
    clock.now_s = planned_s + overslept_s
    beats.on_wake(clock.now_s, planned_s)
    since_s = clock.now_s if overslept_s > LATE_S else told_s
    assert [beats.silent_at_s(number) for number in range(2)] == [since_s + SILENCE_S] * 2


def test_without_a_bound_no_worker_is_ever_silent(clock: Clock) -> None:
    beats = Heartbeats(1)
    beats.beat(0)
    assert beats.silent_at_s(0) == math.inf
