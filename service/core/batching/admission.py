"""Admission: decides whether a request may wait, and when a refused client should try again.

There are two reasons to refuse: the queue is full, or at the measured pace the answer would come
too late. Both answer 429 with a Retry-After, because nothing was computed and a later try can
succeed. 504 is for requests that the service accepted and then did not answer in time.
docs/decisions/0022 gives the reasons.

Admission changes no state. `service.core.batching.batcher` asks it, then queues, evicts or raises.
"""

import math
from dataclasses import dataclass
from typing import Final

from service.core.batching.job_queue import JobQueue
from service.core.batching.pace import Pace
from service.errors import AstrolabeError, DeadlineUnreachable, PayloadTooLarge, QueueFull

MIN_RETRY_AFTER_S: Final = 1.0
"""The Retry-After header counts whole seconds, so one is the least that is not zero."""
MAX_RETRY_AFTER_S: Final = 60.0
"""A choice: a longer wait helps the queue little and keeps clients away after an overload ends."""
SLACK: Final = 4 / 3
"""Factor on every estimated time.

It covers estimation errors and the network: the client's clock started before the service read the
request. Without it the 99th percentile of answers was 1,071 ms for a deadline of 1,000 ms
(docs/decisions/0022).
"""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Limits of a batcher: times in seconds, sizes in tokens.

    `max_tokens` is the most tokens that one text can have after truncation. A batch holds no more
    than computes in `max_batch_s`: on a CPU a larger batch is no faster for each text, and all its
    texts wait for its end. Bulk work may fill `bulk_queue_share` of the queue. Admission refuses
    interactive work that would wait longer than `max_wait_s`, even if its deadline allows more.
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
        """Most estimated tokens of this class (bulk or interactive) that may wait."""
        return int(self.max_queue_tokens * (self.bulk_queue_share if bulk else 1.0))


class Admission:
    """Judges requests for one queue by one measured pace."""

    def __init__(self, limits: BatchLimits, queue: JobQueue, pace: Pace) -> None:
        self._limits = limits
        self._queue = queue
        self._pace = pace

    @property
    def full_batch(self) -> float:
        """Most estimated tokens in a batch, by limits and pace. A single larger job goes alone."""
        return min(
            self._limits.max_batch_tokens, self._pace.tokens_within(self._limits.max_batch_s)
        )

    def refusal(
        self, tokens: int, budget_s: float, bulk: bool, lane_free: bool, lag_s: float
    ) -> AstrolabeError | None:
        """The error for a job that must not wait, or None if it may.

        The job has `tokens` estimated tokens and `budget_s` seconds until its deadline. `lag_s` is
        the delay that the event loop adds to the wait for a lane, in seconds.
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
        """The error of a full queue; Retry-After is the time until the present queue is empty."""
        return QueueFull(
            f"{self._queue.tokens} tokens wait already: try again later",
            retry_after_s=_bounded(self._drain_s(bulk)),
        )

    def _has_no_room(self, tokens: int, bulk: bool) -> bool:
        """Whether the queue has no room. Interactive work may evict bulk work, not the reverse."""
        limits, queue = self._limits, self._queue
        if not bulk:
            return queue.interactive_tokens + tokens > limits.max_queue_tokens
        return (
            queue.bulk_tokens + tokens > limits.max_waiting_tokens(bulk)
            or queue.tokens + tokens > limits.max_queue_tokens
        )

    def _batch_tokens(self, tokens: int, bulk: bool) -> float:
        """Estimated tokens of the batch that this job would join, the job included."""
        if bulk:
            return tokens
        return max(tokens, min(self._queue.interactive_tokens + tokens, self.full_batch))

    def _wait_s(self, tokens: int, bulk: bool, lane_free: bool) -> float:
        """Estimated seconds that this job would wait for a lane; 0 before any measurement."""
        pace = self._pace
        if not pace.tokens_per_s:
            return 0.0
        busy_s = 0.0 if lane_free else pace.compute_s / self._limits.lanes
        if bulk:
            return busy_s + self._drain_s(bulk)
        # Jobs that fit into the next batch do not wait for another one.
        ahead = max(0, self._queue.interactive_tokens + tokens - self.full_batch)
        return busy_s + ahead / pace.tokens_per_s

    def _drain_s(self, bulk: bool) -> float:
        """Estimated seconds until all jobs of this class have left the queue; 0 if unknown."""
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
