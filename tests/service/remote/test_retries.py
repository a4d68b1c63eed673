"""Retries: which failure is tried again, after how long, and when it is given up."""

import pytest

from service.remote.errors import (
    AnswerNotUnderstood,
    AstrolabeClientError,
    AstrolabeConnectionError,
    AstrolabeTimeout,
    Overloaded,
    RequestRefused,
    ServiceFailed,
)
from service.remote.retries import Attempts, Retries
from tests.support.fakes import FakeClock

FULL = Overloaded(429, "queue_full", "full", "r-1")
ENDING = Overloaded(503, "shutting_down", "ending", "r-1")
BROKEN = AstrolabeConnectionError("the connection broke")
LATE = AstrolabeTimeout("no answer")


def attempts(
    clock: FakeClock, repeatable: bool = True, timeout_s: float = 60.0, **retries: float
) -> Attempts:
    return Attempts(repeatable, timeout_s, Retries(**retries), clock, spread=lambda: 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "undone", "if_repeatable", "if_not"),
    [
        (FULL, False, True, True),  # refused before anything was done
        (ENDING, False, True, False),  # may be a proxy's word, after the work
        (BROKEN, False, True, False),
        (BROKEN, True, True, True),
        (LATE, False, False, False),  # the time is spent
        (LATE, True, True, True),
        (ServiceFailed(500, "internal", "bug", "r-1"), False, False, False),
        (RequestRefused(422, "invalid_value", "k", "r-1"), False, False, False),
        (AnswerNotUnderstood("no JSON"), False, False, False),
    ],
)
def test_only_what_may_be_done_twice_is_tried_again(
    error: AstrolabeClientError, undone: bool, if_repeatable: bool, if_not: bool
) -> None:
    for repeatable, again in ((True, if_repeatable), (False, if_not)):
        request = attempts(FakeClock(), repeatable)
        request.begin()
        if again:
            assert request.wait_s(error, undone) == pytest.approx(0.1)
        else:
            with pytest.raises(type(error)) as given_up:
                request.wait_s(error, undone)
            assert given_up.value is error


def test_waits_double_up_to_the_longest_and_the_tries_end() -> None:
    request, waits = attempts(FakeClock(), max_tries=5, max_wait_s=0.5), []
    for _ in range(4):
        request.begin()
        waits.append(request.wait_s(FULL))
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.5])
    request.begin()
    with pytest.raises(Overloaded):
        request.wait_s(FULL)


@pytest.mark.parametrize(
    ("retry_after_s", "spread", "wait_s"),
    [(2.0, 0.0, 2.0), (2.0, 1.0, 2.5), (60.0, 0.0, 5.0), (0.0, 0.0, 0.0), (None, 0.5, 0.1125)],
)
def test_a_wait_that_the_service_names_is_kept_up_to_the_longest(
    retry_after_s: float | None, spread: float, wait_s: float
) -> None:
    request = Attempts(True, 60.0, Retries(), FakeClock(), spread=lambda: spread)
    request.begin()
    error = Overloaded(429, "queue_full", "full", "r-1", retry_after_s)
    assert request.wait_s(error) == pytest.approx(wait_s)


@pytest.mark.parametrize(("left_s", "waits"), [(0.11, True), (0.1, False), (0.05, False)])
def test_no_wait_uses_up_what_is_left_of_the_deadline(left_s: float, waits: bool) -> None:
    clock = FakeClock()
    clock.now = 0.0
    request = attempts(clock, timeout_s=1.0)
    assert request.begin() == pytest.approx(1.0)
    clock.now = 1.0 - left_s
    if waits:
        request.wait_s(FULL)
    else:
        with pytest.raises(Overloaded):
            request.wait_s(FULL)


def test_all_tries_are_under_one_deadline() -> None:
    clock = FakeClock()
    request = attempts(clock, timeout_s=2.5)
    request.begin()
    clock.advance(2.0)
    assert request.begin() == pytest.approx(0.5)
    clock.advance(0.5)
    with pytest.raises(AstrolabeTimeout, match=r"no answer within 2\.5 s"):
        request.begin()
