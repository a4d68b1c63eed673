"""Overload through the batcher: who is refused, who goes first, and that the door opens again."""

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from service.core.batching.admission import SLACK
from service.errors import DeadlineExceeded, DeadlineUnreachable, PayloadTooLarge, QueueFull
from tests.support.batching import FAR_S, Bench, started
from tests.support.fakes import SAFETY_S
from tests.support.garbage import leaving_none

pytestmark = pytest.mark.anyio

FULL = "x" * 90  # 32 tokens by estimate, half of a batch


async def measure(bench: Bench, seconds: float, text: str = FULL) -> None:
    """Let one batch take this long, so that the pace is known."""
    first = await bench.occupy_lane(text)
    bench.clock.advance(seconds)
    bench.predict.release()
    await first


def bulk(bench: Bench, text: str, within_s: float = FAR_S) -> "asyncio.Future[Any]":
    return bench.submit(text, within_s=within_s, bulk=True)


async def test_what_could_not_be_answered_in_time_is_refused_at_once() -> None:
    async with started(max_queue_tokens=1024) as bench:
        await measure(bench, 8.0)  # 4 tokens a second, 8 s a batch
        busy = await bench.occupy_lane()
        waiting = [bench.submit(FULL) for _ in range(3)]
        # The lane is busy for 8 s, then a batch of 64 tokens goes first, then one as large with it.
        with pytest.raises(DeadlineUnreachable) as refusal:
            bench.submit(FULL, within_s=20.0)
        assert refusal.value.retry_after_s == pytest.approx(SLACK * (8 + 64 / 4 + 64 / 4) - 20)
        waiting.append(bench.submit(FULL, within_s=60.0))
        bench.predict.release()
        await asyncio.gather(busy, *waiting)
    assert bench.recorder.rejections == {"deadline_unreachable": 1}


async def test_a_batch_is_cut_to_what_computes_in_its_time_but_never_to_nothing() -> None:
    for seconds, fit in ((10.0, 1), (1.0, 1), (100.0, 2)):
        async with started(max_queue_tokens=1024, max_batch_s=seconds) as bench:
            await measure(bench, 8.0)  # 4 tokens a second: 32 of them, and no 64, within 10 s
            busy = await bench.occupy_lane(FULL)
            waiting = [bench.submit(FULL) for _ in range(4)]
            bench.clock.advance(8.0)
            bench.predict.release()
            await asyncio.gather(busy, *waiting)
        assert len(bench.predict.batches[2]) == fit


async def test_a_refusal_leaves_nothing_for_the_garbage_collector() -> None:
    """In an overload there are thousands a second, and a collection stops every answer."""
    async with started(max_queue_tokens=64) as bench:
        busy = await bench.occupy_lane()
        waiting = [bench.submit(FULL), bench.submit(FULL)]
        with leaving_none(QueueFull):
            for refuse in (lambda: bench.submit(FULL), lambda: bench.batcher.check_room(FAR_S)):
                with contextlib.suppress(QueueFull):
                    refuse()
        assert bench.recorder.rejections == {"queue_full": 2}
        bench.predict.release()
        await asyncio.gather(busy, *waiting)


async def test_nobody_is_refused_before_a_batch_was_measured() -> None:
    async with started(max_queue_tokens=1024) as bench:
        busy = await bench.occupy_lane()
        waiting = bench.submit(FULL, within_s=0.001)
        bench.predict.release()
        await asyncio.gather(busy, waiting)


async def test_idle_service_refuses_nobody_and_one_slow_batch_locks_no_door() -> None:
    async with started(max_queue_tokens=1024) as bench:
        for _ in range(5):
            await measure(bench, 100.0)
        for _ in range(60):  # each deadline is far below what was measured
            await bench.submit("a", within_s=0.5)
        busy = await bench.occupy_lane()
        behind = bench.submit("a", within_s=60.0)  # by now the slow ones are forgotten
        bench.predict.release()
        await asyncio.gather(busy, behind)
    assert bench.recorder.rejections == {}
    assert bench.recorder.drops == {}


STALLS_S = (0.01, 0.1, 0.5, 1.0, 5.0)
DEADLINES_S = (0.02, 0.1, 1.0, 30.0)


async def stand_still(bench: Bench, seconds: float, computing_s: float = 0.0) -> None:
    """Let the loop take notice of one batch only so long after its end."""
    ended = threading.Event()
    bench.predict.hold()
    answer = bench.submit("a")
    await bench.predict.wait_entered()
    bench.clock.advance(computing_s)
    bench.clock.on_read = ended.set
    bench.predict.release()
    assert ended.wait(SAFETY_S)  # the lane has read the time at which it ended; the loop has not
    bench.clock.on_read = None
    bench.clock.advance(seconds)
    await answer


@pytest.mark.parametrize("stall_s", STALLS_S)
@pytest.mark.parametrize("deadline_s", DEADLINES_S)
@pytest.mark.parametrize("stalls", [1, 2, 5])
@pytest.mark.parametrize("computing_s", [0.0, 0.05])
async def test_no_stall_makes_an_idle_service_refuse(
    stall_s: float, deadline_s: float, stalls: int, computing_s: float
) -> None:
    async with started(max_queue_tokens=1024) as bench:
        for _ in range(stalls):
            await stand_still(bench, stall_s, computing_s)
            for _ in range(3):  # the next comes at once, and some a little later
                bench.batcher.check_room(bench.clock.now + deadline_s)
                await bench.submit("a", within_s=deadline_s)
                bench.clock.advance(0.001)
    assert bench.recorder.rejections == {}
    assert bench.recorder.drops == {}


@pytest.mark.parametrize(
    ("lags_s", "pause_s", "refused"),
    [
        ([1.0], 0.0, False),  # one stall is no standing queue
        ([1.0, 0.0], 0.0, False),
        ([0.0, 1.0], 0.0, False),
        ([0.3, 0.3, 0.0], 0.0, False),
        ([0.3, 0.3], 0.0, True),  # two computations in a row came late: the loop lags
        ([0.3, 0.3], 1.0, False),  # and that is forgotten
        ([0.3], 0.0, False),
    ],
)
async def test_only_a_lag_that_was_seen_twice_is_counted(
    lags_s: Sequence[float], pause_s: float, refused: bool
) -> None:
    async with started(max_queue_tokens=1024) as bench:
        for lag_s in lags_s:
            await stand_still(bench, lag_s)
        bench.clock.advance(pause_s)
        busy = await bench.occupy_lane()
        if refused:
            with pytest.raises(DeadlineUnreachable):  # 3 times 0.3 s, and a third more
                bench.submit("a", within_s=1.1)
        waiting = bench.submit("a", within_s=1.3)
        bench.predict.release()
        await asyncio.gather(busy, waiting)
    assert bench.recorder.rejections == ({"deadline_unreachable": 1} if refused else {})


async def test_what_is_behind_the_next_batch_is_judged_though_a_lane_is_free() -> None:
    async with started(max_queue_tokens=1024) as bench:
        await measure(bench, 8.0)  # 4 tokens a second
        waiting = [bench.submit(FULL, within_s=1.0), bench.submit(FULL, within_s=1.0)]
        with pytest.raises(DeadlineUnreachable):
            bench.submit(FULL, within_s=1.0)
        assert isinstance(
            bench.batcher.refusal(bench.clock.now + 1.0, others=2), DeadlineUnreachable
        )
        await asyncio.gather(*waiting)


async def test_what_cannot_finish_any_more_is_dropped_before_compute() -> None:
    async with started(max_queue_tokens=1024) as bench:
        for _ in range(3):
            await measure(bench, 8.0)
        busy = await bench.occupy_lane()
        late, kept = bench.submit("late", within_s=24.0), bench.submit("kept")
        bench.clock.advance(17.0)  # 7 s are left of 24, and a batch takes 8
        bench.predict.release()
        await asyncio.gather(busy, kept)
        with pytest.raises(DeadlineExceeded, match="too late to compute"):
            await late
    assert "late" not in bench.predict.texts()
    assert bench.recorder.drops == {"expired": 1}


async def test_giving_up_on_all_that_waits_makes_the_estimate_doubted() -> None:
    async with started(max_queue_tokens=1024) as bench:
        for _ in range(3):
            await measure(bench, 8.0)
        busy = await bench.occupy_lane()
        late = bench.submit("late", within_s=24.0)
        bench.clock.advance(17.0)
        bench.predict.release()
        await asyncio.gather(busy, late, return_exceptions=True)
        assert bench.recorder.drops == {"expired": 1}
        busy = await bench.occupy_lane()
        late = bench.submit("late again", within_s=40.0)
        bench.clock.advance(31.4)  # a batch is believed to take 8.2 s at least, and not 9.0
        bench.predict.release()
        await asyncio.gather(busy, late)


async def test_bound_on_the_wait_refuses_before_the_queue_is_full() -> None:
    async with started(max_queue_tokens=1024, max_wait_s=20.0) as bench:
        await measure(bench, 8.0)
        busy = await bench.occupy_lane()
        waiting = [bench.submit(FULL) for _ in range(3)]
        with pytest.raises(QueueFull):
            bench.submit(FULL)
        waiting.append(bulk(bench, FULL))  # bulk work has time
        bench.predict.release()
        await asyncio.gather(busy, *waiting)


async def test_interactive_goes_before_bulk_and_shares_no_batch_with_it() -> None:
    async with started() as bench:
        busy = await bench.occupy_lane()
        waiting = [bulk(bench, "bulk"), bench.submit("a"), bench.submit("b")]
        bench.predict.release()
        await asyncio.gather(busy, *waiting)
    assert bench.predict.batches == [["busy"], ["a", "b"], ["bulk"]]


async def test_bulk_batches_are_short() -> None:
    async with started(max_batch_tokens=64, max_queue_tokens=1024) as bench:
        busy = await bench.occupy_lane()
        waiting = [bulk(bench, text) for text in "abcdef"]  # 2 tokens each, of 64 / 8
        bench.predict.release()
        await asyncio.gather(busy, *waiting)
    assert bench.predict.batches == [["busy"], ["a", "b", "c", "d"], ["e", "f"]]


async def test_bulk_is_not_starved() -> None:
    async with started(max_queue_tokens=1024) as bench:
        busy = await bench.occupy_lane()
        waiting = [bulk(bench, "bulk"), *(bench.submit(FULL) for _ in range(30))]
        bench.predict.release()
        await asyncio.gather(busy, *waiting)
    # Each batch holds two of the interactive ones.
    assert bench.predict.batches.index(["bulk"]) == 1 + 8


async def test_interactive_takes_the_place_of_the_newest_bulk_work() -> None:
    async with started(max_queue_tokens=96, bulk_queue_share=0.7) as bench:
        busy = await bench.occupy_lane()
        older, newer, left = bulk(bench, FULL), bulk(bench, FULL + "y"), bench.submit(FULL)
        taking = bench.submit(FULL + "z")
        with pytest.raises(QueueFull):
            await newer
        bench.predict.release()
        await asyncio.gather(busy, older, left, taking)
    assert bench.recorder.drops == {"evicted": 1}
    assert bench.recorder.rejections == {}


async def test_evicted_job_that_was_abandoned_counts_as_abandoned() -> None:
    async with started(max_queue_tokens=64, bulk_queue_share=0.5) as bench:
        busy = await bench.occupy_lane()
        gone = bulk(bench, FULL)
        gone.cancel()
        waiting = [bench.submit(FULL), bench.submit(FULL)]
        bench.predict.release()
        await asyncio.gather(busy, *waiting)
    assert bench.recorder.drops == {"abandoned": 1}


async def test_bulk_has_its_own_bound_and_evicts_nobody() -> None:
    async with started(max_queue_tokens=128, bulk_queue_share=0.5) as bench:
        busy = await bench.occupy_lane()
        waiting = [bulk(bench, FULL), bulk(bench, FULL)]
        with pytest.raises(QueueFull):
            bulk(bench, "one more")
        waiting += [bench.submit(FULL), bench.submit(FULL)]
        with pytest.raises(PayloadTooLarge, match="send fewer"):
            bench.submit(FULL, FULL, FULL, bulk=True)
        bench.predict.release()
        await asyncio.gather(busy, *waiting)
    assert bench.recorder.drops == {}


async def test_abandoned_bulk_jobs_never_reach_the_encoder() -> None:
    async with started() as bench:
        busy = await bench.occupy_lane()
        abandoned, kept = bulk(bench, "gone"), bulk(bench, "kept")
        abandoned.cancel()
        bench.predict.release()
        await asyncio.gather(busy, kept)
    assert bench.predict.texts() == ["busy", "kept"]
    assert bench.recorder.drops == {"abandoned": 1}


async def test_bulk_work_that_waits_lowers_nobodys_effort() -> None:
    async with started() as bench:
        busy = await bench.occupy_lane()
        waiting = [bulk(bench, "bulk")]
        for _ in range(3):
            bench.clock.advance(10.0)
            assert bench.batcher.oldest_wait_s() == 0.0
        bench.predict.release()
        await asyncio.gather(busy, *waiting)
        assert (await waiting[0]).queries[0].effort == "balanced"


async def test_room_is_judged_by_the_size_of_recent_requests() -> None:
    async with started(max_queue_tokens=64) as bench:
        bench.batcher.check_room(0.0)  # idle: whatever the deadline
        await measure(bench, 0.01)
        busy = await bench.occupy_lane(FULL)
        waiting = [bench.submit(FULL)]
        bench.batcher.check_room(bench.clock.now + FAR_S)
        waiting.append(bench.submit("x" * 30))
        with pytest.raises(QueueFull):  # 20 tokens are free, requests have 32
            bench.batcher.check_room(bench.clock.now + FAR_S)
        bench.predict.release()
        await asyncio.gather(busy, *waiting)
    assert bench.recorder.rejections == {"queue_full": 1}


async def test_no_job_joins_a_batch_that_would_make_another_late() -> None:
    async with started(max_batch_tokens=1024, max_queue_tokens=1024) as bench:
        await measure(bench, 8.0)  # 4 tokens a second
        busy = await bench.occupy_lane(FULL)
        waiting = [bench.submit(FULL, within_s=60.0) for _ in range(2)]
        waiting += [bench.submit("x" * 90 + str(i)) for i in range(3)]
        bench.clock.advance(10.0)  # in the 50 s left, 200 tokens are computed, with a margin 140
        bench.predict.release()
        await asyncio.gather(busy, *waiting)
    assert [len(batch) for batch in bench.predict.batches] == [1, 1, 4, 1]
