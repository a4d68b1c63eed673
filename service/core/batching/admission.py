"""Admission: whether a request that would have to wait may, and when another try makes sense.

Two reasons to refuse: the queue is full, or by the measured pace the answer would come too late.
Both are 429 with the time after which trying again makes sense, because nothing was computed and a
later try can succeed; 504 is left to requests that were accepted and then not answered in time.
It changes nothing: `service.core.batching.batcher` asks it, then queues, evicts or raises.
"""

import math
from dataclasses import dataclass
from typing import Final

from service.core.batching.job_queue import JobQueue
from service.core.batching.pace import Pace
from service.errors import AstrolabeError, DeadlineUnreachable, PayloadTooLarge, QueueFull

MIN_RETRY_AFTER_S: Final = 1.0
MAX_RETRY_AFTER_S: Final = 60.0
SLACK: Final = 4 / 3
"""How much longer than foretold an answer may take: for what nobody foresees, and for the way from
and to the client, whose clock runs since before the request was read."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What bounds a batcher; `max_tokens` is the longest one text can become.

    A batch is cut to what computes in `max_batch_s`: on a CPU a larger one is no faster for each
    text, and all in it wait for its end. Bulk work may fill `bulk_queue_share` of the queue.
    Interactive work is refused where it would wait for longer than `max_wait_s`, whatever its
    deadline.
    """

    lanes: int
    max_tokens: int
    max_batch_tokens: int
    max_queue_tokens: int
    batch_wait_s: float = 0.0
    stuck_after_s: float = 30.0
    bulk_queue_share: float = 0.5
    max_wait_s: float = math.inf
    max_batch_s: float = math.inf

    def max_waiting_tokens(self, bulk: bool) -> int:
        """Most estimated tokens of work of this class that may wait."""
        return int(self.max_queue_tokens * (self.bulk_queue_share if bulk else 1.0))


class Admission:
    """The judgement on one queue, by one pace."""

    def __init__(self, limits: BatchLimits, queue: JobQueue, pace: Pace) -> None:
        self._limits = limits
        self._queue = queue
        self._pace = pace

    @property
    def full_batch(self) -> float:
        """Most estimated tokens of a batch, by limits and pace; a job alone in one may be over."""
        return min(
            self._limits.max_batch_tokens, self._pace.tokens_within(self._limits.max_batch_s)
        )

    def refusal(
        self, tokens: int, budget_s: float, bulk: bool, lane_free: bool, lag_s: float
    ) -> AstrolabeError | None:
        """Why a job of this class, which has this long to be answered, cannot wait; else None.

        `lag_s` is what the loop adds to the wait for a lane.
        """
        limits = self._limits
        limit = limits.max_waiting_tokens(bulk)
        if tokens > limit:
            return PayloadTooLarge(
                f"the texts make about {tokens} tokens, the queue holds {limit}: send fewer at once"
            )
        wait_s = lag_s + self._wait_s(tokens, bulk, lane_free)
        if self._has_no_room(tokens, bulk) or (not bulk and wait_s > limits.max_wait_s):
            return self.full(bulk)
        needed_s = SLACK * (wait_s + self._pace.compute_s_of(self._batch_tokens(tokens, bulk)))
        if needed_s > budget_s:
            return DeadlineUnreachable(
                f"an answer would take about {needed_s * 1e3:.0f} ms and has "
                f"{max(0.0, budget_s) * 1e3:.0f} ms: try again later, or allow more with "
                "X-Request-Timeout-Ms",
                retry_after_s=_bounded(needed_s - budget_s),
            )
        return None

    def full(self, bulk: bool) -> QueueFull:
        """The refusal of a full queue, to be tried again when what waits now is gone."""
        return QueueFull(
            f"{self._queue.tokens} tokens wait already: try again later",
            retry_after_s=_bounded(self._drain_s(bulk)),
        )

    def _has_no_room(self, tokens: int, bulk: bool) -> bool:
        """Interactive work may take the place of bulk work; bulk work needs a place of its own."""
        limits, queue = self._limits, self._queue
        if not bulk:
            return queue.interactive_tokens + tokens > limits.max_queue_tokens
        return (
            queue.bulk_tokens + tokens > limits.max_waiting_tokens(bulk)
            or queue.tokens + tokens > limits.max_queue_tokens
        )

    def _batch_tokens(self, tokens: int, bulk: bool) -> float:
        """How large the batch will be that a job of this class goes into."""
        if bulk:
            return tokens
        return max(tokens, min(self._queue.interactive_tokens + tokens, self.full_batch))

    def _wait_s(self, tokens: int, bulk: bool, lane_free: bool) -> float:
        """How long a job of this class would wait for its lane; 0 where nothing is known yet."""
        pace = self._pace
        if not pace.tokens_per_s:
            return 0.0
        busy_s = 0.0 if lane_free else pace.compute_s / self._limits.lanes
        if bulk:
            return busy_s + self._drain_s(bulk)
        # What fits goes into the very next batch.
        ahead = max(0, self._queue.interactive_tokens + tokens - self.full_batch)
        return busy_s + ahead / pace.tokens_per_s

    def _drain_s(self, bulk: bool) -> float:
        """How long it takes until what waits now in this class is gone; 0 where that is unknown."""
        queue, rate = self._queue, self._pace.tokens_per_s
        if not rate:
            return 0.0
        return (
            queue.bulk_tokens / (rate * queue.bulk_share)
            if bulk
            else queue.interactive_tokens / rate
        )


def _bounded(seconds: float) -> float:
    return min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, seconds))
