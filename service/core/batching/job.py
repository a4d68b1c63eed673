"""Job and Answer: one request inside the batcher, and its result."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from service.core.types import Prediction, Query, StageTimings


@dataclass(frozen=True, slots=True)
class Answer:
    """One job's result: its queries with the effort they were computed at, and its predictions.

    `timings` are those of the whole batch, which held `batch_queries` queries. `queue_s` is the
    job's own wait for a lane, in seconds.
    """

    queries: Sequence[Query]
    predictions: list[Prediction]
    timings: StageTimings
    queue_s: float
    batch_queries: int


@dataclass(slots=True, eq=False)
class Job:
    """One request that waits or computes.

    `tokens` is an estimate. `submitted_s` and `deadline_s` are on the batcher's clock. `at_once`
    says that a lane was free for the job when it came.
    """

    queries: Sequence[Query]
    tokens: int
    submitted_s: float
    deadline_s: float
    future: "asyncio.Future[Answer]"
    bulk: bool = False
    at_once: bool = False
