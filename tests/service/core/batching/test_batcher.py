import asyncio

import pytest

from service.core.batching.batcher import estimate_tokens
from service.core.types import Query
from service.errors import (
    DeadlineExceeded,
    NotReady,
    PayloadTooLarge,
    PredictFailed,
    QueueFull,
    ShuttingDown,
)
from tests.support.batching import Bench, started
from tests.support.fakes import SAFETY_S, FakePredict

pytestmark = pytest.mark.anyio


async def test_answers_come_back_in_the_order_of_the_queries() -> None:
    async with started() as bench:
        answer = await bench.submit("a", "bb", "ccc")
    assert [int(prediction.rows[0]) for prediction in answer.predictions] == [1, 2, 3]


async def test_idle_service_adds_no_wait() -> None:
    async with started() as bench:
        answer = await bench.submit("a")
    assert answer.queue_s == 0.0


async def test_everything_that_waits_goes_into_the_next_batch() -> None:
    async with started() as bench:
        first = await bench.occupy_lane()
        rest = [bench.submit(text) for text in ("a", "b", "c")]
        bench.predict.release()
        await asyncio.gather(first, *rest)
    assert bench.predict.batches == [["busy"], ["a", "b", "c"]]
    assert bench.recorder.batch_sizes == [1, 3]


async def test_requests_of_one_turn_of_the_loop_share_a_batch() -> None:
    async with started() as bench:
        await asyncio.gather(bench.submit("a"), bench.submit("b"))
    assert bench.predict.batches == [["a", "b"]]


async def test_batch_is_cut_at_the_token_budget() -> None:
    text = "x" * 24  # 10 tokens by estimate
    async with started(max_batch_tokens=32) as bench:
        first = await bench.occupy_lane()
        rest = [bench.submit(text) for _ in range(4)]
        bench.predict.release()
        await asyncio.gather(first, *rest)
    assert [len(batch) for batch in bench.predict.batches] == [1, 3, 1]


async def test_job_above_the_budget_runs_alone() -> None:
    async with started(max_batch_tokens=32) as bench:
        first = await bench.occupy_lane()
        big = bench.submit(*["x" * 24] * 5)
        small = bench.submit("a")
        bench.predict.release()
        await asyncio.gather(first, big, small)
    assert [len(batch) for batch in bench.predict.batches] == [1, 5, 1]


async def test_lanes_compute_at_the_same_time() -> None:
    async with started(lanes=2, max_batch_tokens=32) as bench:
        bench.predict.hold()
        futures = [bench.submit("x" * 90), bench.submit("y" * 90)]
        await bench.predict.wait_entered()
        await bench.predict.wait_entered()  # the second is in before the first is out
        bench.predict.release()
        await asyncio.gather(*futures)


async def test_batch_wait_collects_until_the_budget_is_full() -> None:
    async with started(batch_wait_s=60.0, max_batch_tokens=32) as bench:
        futures = [bench.submit("x" * 24) for _ in range(3)]
        await asyncio.sleep(0)
        assert bench.predict.batches == []  # a lane is free, but company may come
        futures.append(bench.submit("x" * 24))
        await asyncio.gather(*futures[:3])
        assert [len(batch) for batch in bench.predict.batches] == [3]


async def test_batch_wait_ends_by_itself() -> None:
    bench = Bench(FakePredict(), batch_wait_s=0.001)
    bench.batcher.start()
    future = bench.submit("a")
    bench.clock.advance(0.001)
    async with asyncio.timeout(SAFETY_S):
        await future
    await bench.batcher.drain(SAFETY_S)


async def test_encoder_error_reaches_every_waiter_and_next_batch_works() -> None:
    async with started() as bench:
        first = await bench.occupy_lane()
        second = bench.submit("a")
        bench.predict.error = RuntimeError("broken")
        bench.predict.release()
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [PredictFailed, PredictFailed]
        assert "broken" not in str(outcomes[0])  # internals stay in the log
        bench.predict.error = None
        assert (await bench.submit("b")).predictions


async def test_a_lane_outlives_even_system_exit() -> None:
    async with started() as bench:
        bench.predict.error = SystemExit(3)
        with pytest.raises(PredictFailed):
            await bench.submit("a")
        bench.predict.error = None
        await bench.submit("b")
        assert bench.batcher.health() is None


async def test_too_few_predictions_are_an_error_not_a_shift() -> None:
    async with started() as bench:
        bench.predict.missing = 1
        with pytest.raises(PredictFailed):
            await bench.submit("a", "b")


async def test_cancelled_request_does_not_kill_the_batcher() -> None:
    async with started() as bench:
        computing = await bench.occupy_lane()
        waiting = bench.submit("waiting")
        computing.cancel()
        waiting.cancel()
        bench.predict.release()
        assert (await bench.submit("after")).predictions
    assert bench.predict.texts() == ["busy", "after"]
    assert bench.recorder.drops == {"abandoned": 1}


async def test_abandoned_and_expired_jobs_never_reach_the_encoder() -> None:
    async with started() as bench:
        first = await bench.occupy_lane()
        abandoned = bench.submit("abandoned")
        expired = bench.submit("expired", within_s=1.0)
        kept = bench.submit("kept", within_s=9.0)
        abandoned.cancel()
        bench.clock.advance(2.0)
        bench.predict.release()
        await asyncio.gather(first, kept)
        with pytest.raises(DeadlineExceeded):
            await expired
    assert bench.predict.texts() == ["busy", "kept"]
    assert bench.recorder.drops == {"abandoned": 1, "expired": 1}
    assert bench.batcher.waiting_tokens == 0


async def test_full_queue_refuses_with_retry_after_from_the_drain_rate() -> None:
    async with started(max_queue_tokens=64) as bench:
        first = await bench.occupy_lane("x" * 90)  # 32 tokens
        bench.clock.advance(8.0)
        bench.predict.release()
        await first  # 4 tokens a second
        second = await bench.occupy_lane()
        waiting = [bench.submit("x" * 90), bench.submit("x" * 90)]
        with pytest.raises(QueueFull) as refusal:
            bench.submit("a")
        assert refusal.value.retry_after_s == pytest.approx(64 / 4)
        bench.predict.release()
        await asyncio.gather(second, *waiting)
        await bench.submit("a")
    assert bench.recorder.rejections == {"queue_full": 1}


async def test_one_text_and_a_list_of_one_get_the_same_admission() -> None:
    # Admission sees queries only; fifty texts cost what fifty single ones would.
    async with started(max_queue_tokens=64) as bench:
        first = await bench.occupy_lane()
        together = bench.submit("a", "b", "c")
        tokens = bench.batcher.waiting_tokens
        apart = [bench.submit(text) for text in ("a", "b", "c")]
        assert bench.batcher.waiting_tokens == 2 * tokens
        bench.predict.release()
        await asyncio.gather(first, together, *apart)


async def test_request_larger_than_the_whole_queue_is_too_large_not_retryable() -> None:
    async with started(max_queue_tokens=64) as bench:
        with pytest.raises(PayloadTooLarge, match="send fewer"):
            bench.submit(*["x" * 90] * 3)


async def test_submit_before_start_is_not_ready() -> None:
    with pytest.raises(NotReady):
        Bench(FakePredict()).submit("a")


async def test_shutdown_finishes_every_accepted_request() -> None:
    async with started() as bench:
        first = await bench.occupy_lane()
        waiting = bench.submit("a")
        drain = asyncio.create_task(bench.batcher.drain(SAFETY_S))
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            bench.submit("late")
        bench.predict.release()
        await drain
        assert (await first).predictions
        assert (await waiting).predictions


async def test_shutdown_fails_every_request_that_does_not_finish() -> None:
    async with started() as bench:
        computing = await bench.occupy_lane()
        waiting = bench.submit("a")
        await bench.batcher.drain(0.0)
        for future in (computing, waiting):
            with pytest.raises(ShuttingDown):
                await future
    assert bench.recorder.drops == {"shutting_down": 1}


async def test_drain_of_an_idle_batcher_ends_the_lanes() -> None:
    async with started(lanes=3) as bench:
        await bench.batcher.drain(SAFETY_S)
        assert bench.batcher.health() == "3 of 3 lanes have died"


async def test_healthy_while_idle_and_while_computing() -> None:
    async with started() as bench:
        assert bench.batcher.health() is None
        first = await bench.occupy_lane()
        bench.clock.advance(5.0)
        assert bench.batcher.health() is None
        bench.predict.release()
        await first


async def test_stuck_predict_turns_health_red_and_hangs_no_caller() -> None:
    async with started(stuck_after_s=30.0) as bench:
        stuck = await bench.occupy_lane()
        waiting = bench.submit("a")
        bench.clock.advance(31.0)
        assert "computing for 31 s" in (bench.batcher.health() or "")
        for future in (stuck, waiting):  # the waiter bounds its own wait
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await future
        bench.predict.release()


async def test_dead_lane_turns_health_red_and_fails_what_waits() -> None:
    async with started() as bench:
        lane = bench.batcher._lanes[0]
        first = await bench.occupy_lane()
        waiting = bench.submit("a")
        lane.inbox.put(None)  # the lane ends once its batch is done
        bench.batcher._free.clear()
        finish, bench.batcher._finish = bench.batcher._finish, lambda *_: None  # type: ignore
        bench.predict.release()
        for future, error in ((first, PredictFailed), (waiting, NotReady)):
            with pytest.raises(error):
                await future
        assert bench.batcher.health() == "1 of 1 lanes have died"
        with pytest.raises(NotReady):
            bench.submit("late")
        bench.batcher._finish = finish  # type: ignore[method-assign]


async def test_effort_is_lowered_when_the_batch_is_made_not_when_a_job_comes() -> None:
    async with started() as bench:
        first = await bench.occupy_lane()
        second = bench.submit("a", "b")
        bench.effort.record_wait(1.0)
        bench.clock.advance(1.0)
        bench.effort.cap([Query("x", 1, "balanced")])
        bench.predict.release()
        answers = [await first, await second]
    assert [[q.effort for q in answer.queries] for answer in answers] == [
        ["balanced"],
        ["fast", "fast"],
    ]


async def test_expired_jobs_count_as_having_waited() -> None:
    async with started() as bench:
        first = await bench.occupy_lane()
        bench.effort.record_wait(1.0)
        bench.effort.cap([Query("x", 1, "balanced")])
        expired = bench.submit("expired", within_s=0.5)
        bench.clock.advance(1.0)
        kept = bench.submit("kept")
        assert bench.batcher.oldest_wait_s() == 1.0
        bench.predict.release()
        await asyncio.gather(first, kept)
        with pytest.raises(DeadlineExceeded):
            await expired
        assert bench.batcher.oldest_wait_s() == 0.0
        assert (await kept).queries[0].effort == "fast"


def test_estimate_grows_with_text_and_script_and_stops_at_max_tokens() -> None:
    assert estimate_tokens("", 32) == 2
    assert estimate_tokens("dog", 32) < estimate_tokens("a longer english text", 32)
    assert estimate_tokens("日本語の文", 32) == 7  # about a token a character
    assert estimate_tokens("x" * 10_000, 32) == 32
    assert estimate_tokens("\ud800", 32) == 2  # a lone surrogate is no reason to fail
