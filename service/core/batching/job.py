"""Job and Answer: one request on its way through the batcher, and what comes of it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from service.core.types import Prediction, Query, StageTimings


@dataclass(frozen=True, slots=True)
class Answer:
    """One job's queries as they were computed, their predictions, and where its time went."""

    queries: Sequence[Query]
    predictions: list[Prediction]
    timings: StageTimings
    queue_s: float
    batch_queries: int


@dataclass(slots=True, eq=False)
class Job:
    """One request that waits or computes. `at_once`: it came while a lane was free for it."""

    queries: Sequence[Query]
    tokens: int
    submitted_s: float
    deadline_s: float
    future: "asyncio.Future[Answer]"
    bulk: bool = False
    at_once: bool = False
