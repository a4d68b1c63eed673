"""JobQueue: what waits for a lane, in two classes, and which class the next batch is made of.

Interactive work goes first. A batch holds one class only, and a batch of bulk work is short, so
that bulk texts lengthen no interactive answer by more than such a batch. So that bulk work does not
starve, it gets one batch after every `BULK_EVERY` that passed it over: by count and not by age,
because under a long overload all bulk work is old, and would then go first.

It computes nothing and touches no future: `service.core.batching.batcher` admits, drops and
answers.
"""

from collections import deque
from typing import Final

from service.core.batching.job import Job

BULK_EVERY: Final = 8
BULK_BATCH_SHARE: Final = 1 / 8
"""Of a full batch: the most that one batch of bulk work holds, but always one job."""

SHARE_KEPT: Final = 0.95
"""How much of what was seen before counts beside the newest batch, in the bulk share."""


class JobQueue:
    """Two first-in-first-out queues with their estimated tokens."""

    def __init__(self) -> None:
        self.interactive: deque[Job] = deque()
        self.bulk: deque[Job] = deque()
        self.interactive_tokens = 0
        self.bulk_tokens = 0
        self._passed_over = 0  # batches made since bulk work, which waited, had one
        self._taken = self._bulk_taken = 0.0  # tokens, fading, while bulk work waited

    def __bool__(self) -> bool:
        return bool(self.interactive or self.bulk)

    @property
    def tokens(self) -> int:
        """Estimated tokens that wait, of both classes."""
        return self.interactive_tokens + self.bulk_tokens

    @property
    def bulk_share(self) -> float:
        """Share of the tokens taken that was bulk, in the recent past in which bulk work waited."""
        return self._bulk_taken / self._taken if self._bulk_taken else 1.0

    def append(self, job: Job) -> None:
        """Let a job wait, behind those of its class."""
        if job.bulk:
            self.bulk.append(job)
            self.bulk_tokens += job.tokens
        else:
            self.interactive.append(job)
            self.interactive_tokens += job.tokens

    def turn(self, full_batch: float) -> tuple[deque[Job], float]:
        """The class that the next batch is made of, and the tokens it may hold."""
        if self.bulk and (not self.interactive or self._passed_over >= BULK_EVERY):
            return self.bulk, full_batch * BULK_BATCH_SHARE
        return self.interactive, full_batch

    def pop(self, waiting: deque[Job]) -> Job:
        """Take the oldest job of a class."""
        job = waiting.popleft()
        if job.bulk:
            self.bulk_tokens -= job.tokens
        else:
            self.interactive_tokens -= job.tokens
        return job

    def taken(self, waiting: deque[Job], tokens: int) -> None:
        """Note that a batch of this class was made."""
        if waiting is not self.bulk and not self.bulk:
            self._passed_over = 0
            return
        bulk_tokens = tokens if waiting is self.bulk else 0
        self._passed_over = 0 if bulk_tokens else self._passed_over + 1
        self._taken = SHARE_KEPT * self._taken + tokens
        self._bulk_taken = SHARE_KEPT * self._bulk_taken + bulk_tokens

    def evict(self, tokens: int) -> list[Job]:
        """Take the newest bulk jobs out until this many tokens are free, or none is left."""
        evicted: list[Job] = []
        while tokens > 0 and self.bulk:
            job = self.bulk.pop()
            self.bulk_tokens -= job.tokens
            tokens -= job.tokens
            evicted.append(job)
        return evicted

    def clear(self) -> list[Job]:
        """Take out everything that waits."""
        jobs = [*self.interactive, *self.bulk]
        self.interactive.clear()
        self.bulk.clear()
        self.interactive_tokens = self.bulk_tokens = 0
        return jobs
