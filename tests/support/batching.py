"""A started batcher with everything around it in reach: predict, clock, recorder, effort."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from service.core.batching.adaptive_effort import AdaptiveEffort, EffortPolicy
from service.core.batching.admission import BatchLimits
from service.core.batching.batcher import MicroBatcher
from service.core.types import Query, StageTimings
from tests.support.fakes import SAFETY_S, FakeClock, FakePredict, points_of_cost

FAR_S = 1e9
"""A deadline that no test reaches."""


class Recorder:
    """What the batcher told about its work."""

    def __init__(self) -> None:
        self.drops: Counter[str] = Counter()
        self.rejections: Counter[str] = Counter()
        self.waits_s: list[float] = []
        self.batch_sizes: list[int] = []

    def queued(self, seconds: float) -> None:
        self.waits_s.append(seconds)

    def batch_done(self, n_queries: int, timings: StageTimings) -> None:
        self.batch_sizes.append(n_queries)

    def dropped(self, reason: str) -> None:
        self.drops[reason] += 1

    def rejected(self, reason: str) -> None:
        self.rejections[reason] += 1


class Bench:
    """A batcher of one lane; batches hold 64 tokens and the queue 128, unless told otherwise."""

    def __init__(self, predict: FakePredict, **limits: Any) -> None:
        self.predict = predict
        self.clock = FakeClock()
        self.recorder = Recorder()
        values: dict[str, Any] = {
            "lanes": 1,
            "max_tokens": 32,
            "max_batch_tokens": 64,
            "max_queue_tokens": 128,
        }
        policy = EffortPolicy(target_s=0.02, clear_s=0.005, interval_s=0.5, hold_s=5.0)
        self.effort = AdaptiveEffort(points_of_cost(fast=10, balanced=20), policy, self.clock)
        self.batcher = MicroBatcher(
            predict, BatchLimits(**(values | limits)), self.recorder, self.clock, self.effort
        )

    def submit(
        self, *texts: str, within_s: float = FAR_S, bulk: bool = False
    ) -> "asyncio.Future[Any]":
        """Ask for the labels of texts, with this long to be answered."""
        queries = [Query(text, 3, "balanced") for text in texts]
        return self.batcher.submit(queries, self.clock.now + within_s, bulk)

    async def occupy_lane(self, text: str = "busy") -> "asyncio.Future[Any]":
        """Hold the lane with a first job, so that what follows waits."""
        self.predict.hold()
        future = self.submit(text)
        await self.predict.wait_entered()
        return future


@asynccontextmanager
async def started(**limits: Any) -> AsyncIterator[Bench]:
    """A bench whose batcher runs; released and drained at the end."""
    bench = Bench(FakePredict(), **limits)
    bench.batcher.start()
    try:
        async with asyncio.timeout(SAFETY_S):
            yield bench
    finally:
        bench.predict.release()
        await bench.batcher.drain(SAFETY_S)
