"""Admission by itself: who may wait, what the refusal says, and when to try again."""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from service.core.batching.admission import (
    MAX_RETRY_AFTER_S,
    MIN_RETRY_AFTER_S,
    SLACK,
    Admission,
    BatchLimits,
)
from service.core.batching.job import Job
from service.core.batching.job_queue import RECENT_DECAY, JobQueue
from service.core.batching.pace import MARGIN, Pace
from service.errors import AstrolabeError, DeadlineUnreachable, PayloadTooLarge, QueueFull

RATE = 4.0
"""Tokens a second of the measured pace; its one batch took 8 s for 32 tokens."""
BATCH_S = 8.0
FAR_S = 1e9

Make = Callable[..., Admission]


@pytest.fixture
def admission() -> Iterator[Make]:
    """Makes an admission to a queue that holds so many tokens of each class already.

    `taken` are the tokens of earlier batches, below zero where a batch was of bulk work.
    """
    loop = asyncio.new_event_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def make(
        interactive: int = 0,
        bulk: int = 0,
        measured: bool = True,
        taken: Sequence[int] = (),
        **limits: Any,
    ) -> Admission:
        queue, pace = JobQueue(), Pace(lanes=1)
        for tokens, is_bulk in ((interactive, False), (bulk, True)):
            if tokens:
                queue.append(Job([], tokens, 0.0, FAR_S, future, bulk=is_bulk))
        for tokens in taken:
            queue.record_batch(queue.bulk if tokens < 0 else queue.interactive, abs(tokens))
        if measured:
            pace.record_batch(int(RATE * BATCH_S), BATCH_S, more_waiting=True)
        values = {"lanes": 1, "max_tokens": 32, "max_batch_tokens": 64, "max_queue_tokens": 128}
        return Admission(BatchLimits(**(values | limits)), queue, pace)

    yield make
    loop.close()


def refusal(
    admission: Admission,
    tokens: int = 8,
    budget_s: float = FAR_S,
    bulk: bool = False,
    lane_free: bool = False,
    lag_s: float = 0.0,
) -> AstrolabeError | None:
    return admission.refusal(tokens, budget_s, bulk, lane_free, lag_s)


@pytest.mark.parametrize(
    ("interactive", "bulk", "tokens", "asks_bulk", "kind"),
    [
        (0, 0, 128, False, None),
        (0, 0, 129, False, PayloadTooLarge),  # no emptier queue would take it
        (0, 0, 64, True, None),
        (0, 0, 65, True, PayloadTooLarge),  # bulk work has half of the queue
        (120, 0, 8, False, None),
        (120, 0, 9, False, QueueFull),
        (100, 28, 28, False, None),  # takes the place of bulk work
        (100, 28, 29, False, QueueFull),
        (0, 60, 4, True, None),
        (0, 60, 5, True, QueueFull),  # its half is full
        (120, 0, 9, True, QueueFull),  # all of it is full
    ],
)
def test_room_is_by_tokens_and_class(
    admission: Make,
    interactive: int,
    bulk: int,
    tokens: int,
    asks_bulk: bool,
    kind: type[AstrolabeError] | None,
) -> None:
    refused = refusal(admission(interactive, bulk), tokens, bulk=asks_bulk)
    assert kind is None if refused is None else type(refused) is kind


def test_a_text_too_large_is_told_what_the_queue_holds(admission: Make) -> None:
    refused = refusal(admission(), 200)
    assert isinstance(refused, PayloadTooLarge)
    assert "about 200 tokens, the queue holds 128: send fewer at once" in refused.detail


# How long until an answer, by the pace above, in a queue that has room.
NEEDED_S = [
    # what waits, the request, on which lane, and the parts of the time
    ({}, {"tokens": 8, "lane_free": True}, BATCH_S),
    ({}, {"tokens": 8}, BATCH_S + BATCH_S),
    ({}, {"tokens": 8, "lag_s": 3.0}, 3.0 + BATCH_S + BATCH_S),
    ({}, {"tokens": 64, "lane_free": True}, 64 / RATE),  # larger than the batch that was measured
    ({"interactive": 24}, {"tokens": 24}, BATCH_S + 48 / RATE),  # shares a batch with what waits
    ({"interactive": 100}, {"tokens": 8}, BATCH_S + (108 - 64) / RATE + 64 / RATE),
    ({"interactive": 100, "lanes": 2}, {"tokens": 8}, BATCH_S / 2 + (108 - 64) / RATE + 64 / RATE),
    ({"bulk": 60}, {"tokens": 8}, BATCH_S + BATCH_S),  # bulk work stands in nobody's way
    ({"bulk": 40}, {"tokens": 8, "bulk": True}, BATCH_S + 40 / RATE + BATCH_S),
]


@pytest.mark.parametrize(("waiting", "request_", "needed_s"), NEEDED_S)
def test_a_deadline_is_judged_by_the_wait_and_the_computation(
    admission: Make, waiting: dict[str, Any], request_: dict[str, Any], needed_s: float
) -> None:
    judge = admission(**waiting)
    assert refusal(judge, **request_, budget_s=SLACK * needed_s + 0.001) is None
    refused = refusal(judge, **request_, budget_s=SLACK * needed_s - 5.0)
    assert isinstance(refused, DeadlineUnreachable)
    assert refused.retry_after_s == pytest.approx(5.0)
    assert f"about {SLACK * needed_s * 1e3:.0f} ms" in refused.detail


def test_before_a_batch_was_measured_no_deadline_is_too_short(admission: Make) -> None:
    assert refusal(admission(100, measured=False), budget_s=0.0) is None


def test_a_deadline_that_has_passed_has_0_ms_left(admission: Make) -> None:
    refused = refusal(admission(), budget_s=-3.0)
    assert isinstance(refused, DeadlineUnreachable)
    assert (
        "and has 0 ms: try again later, or allow more with X-Request-Timeout-Ms" in refused.detail
    )


@pytest.mark.parametrize(
    ("max_wait_s", "bulk", "refused"),
    [(19.0, False, False), (18.9, False, True), (1.0, True, False), (math.inf, False, False)],
)
def test_only_interactive_work_has_a_bound_on_its_wait(
    admission: Make, max_wait_s: float, bulk: bool, refused: bool
) -> None:
    judge = admission(100, max_wait_s=max_wait_s)  # 8 s until a lane is free, 44 tokens ahead
    assert (refusal(judge, bulk=bulk) is not None) == refused


@pytest.mark.parametrize(
    ("interactive", "measured", "retry_after_s"),
    [
        (128, True, 128 / RATE),
        (2, True, MIN_RETRY_AFTER_S),
        (1000, True, MAX_RETRY_AFTER_S),
        (128, False, MIN_RETRY_AFTER_S),  # nothing is known
    ],
)
def test_a_full_queue_names_the_time_until_what_waits_is_gone(
    admission: Make, interactive: int, measured: bool, retry_after_s: float
) -> None:
    refused = admission(interactive, measured=measured).full(bulk=False)
    assert refused.retry_after_s == pytest.approx(retry_after_s)
    assert f"{interactive} tokens wait already" in refused.detail


@pytest.mark.parametrize(
    ("taken", "share"),
    [
        ((), 1.0),
        ((-64,), 1.0),
        ((64, 64, 64, -64), 1 / (1 + RECENT_DECAY + RECENT_DECAY**2 + RECENT_DECAY**3)),
    ],
)
def test_a_full_queue_tells_bulk_work_what_interactive_work_leaves_it(
    admission: Make, taken: Sequence[int], share: float
) -> None:
    refused = admission(bulk=60, taken=taken).full(bulk=True)
    assert refused.retry_after_s == pytest.approx(60 / (RATE * share))


@pytest.mark.parametrize(
    ("max_batch_s", "measured", "tokens"),
    [(math.inf, True, 64), (10.0, True, 10.0 * MARGIN * RATE), (10.0, False, 64), (0.0, True, 0)],
)
def test_a_batch_is_bounded_by_tokens_and_by_the_time_it_takes(
    admission: Make, max_batch_s: float, measured: bool, tokens: float
) -> None:
    judge = admission(measured=measured, max_batch_s=max_batch_s)
    assert judge.full_batch == pytest.approx(tokens)
