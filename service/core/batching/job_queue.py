"""JobQueue: the jobs that wait for a lane, in two classes; it picks the class of the next batch.

Interactive work goes first. A batch holds one class only, and batches of bulk work are short, so
one of them delays an interactive answer only a little. Bulk work does not starve: after
`BULK_EVERY` interactive batches it gets one. The rule counts batches and not age, because in a long
overload all bulk work is old and would then go first (docs/decisions/0022).

The queue computes nothing and settles no future: `service.core.batching.batcher` admits, drops and
answers jobs.
"""

from collections import deque
from typing import Final

from service.core.batching.job import Job

BULK_EVERY: Final = 8
"""Interactive batches between two bulk ones while both classes wait. A choice: fewer would give
bulk work more of an overload, more would let it wait longer."""
BULK_BATCH_SHARE: Final = 1 / 8
"""Most tokens of a bulk batch, as a share of a full batch; one job always fits. A choice: a larger
share computes bulk work faster and delays interactive work more."""

RECENT_DECAY: Final = 0.95
"""Weight that the sums behind `bulk_share` lose with each batch. A choice: they remember about 20
batches, enough to hold two bulk ones."""


class JobQueue:
    """Two first-in-first-out queues, and the estimated tokens in each."""

    def __init__(self) -> None:
        self.interactive: deque[Job] = deque()
        self.bulk: deque[Job] = deque()
        self.interactive_tokens = 0
        self.bulk_tokens = 0
        self._batches_since_bulk = (
            0  # interactive batches since the last bulk one, while bulk work waits
        )
        # Decaying sums over the batches that formed while bulk work waited.
        self._recent_tokens = self._recent_bulk_tokens = 0.0

    def __bool__(self) -> bool:
        return bool(self.interactive or self.bulk)

    @property
    def tokens(self) -> int:
        """Estimated tokens of all waiting jobs."""
        return self.interactive_tokens + self.bulk_tokens

    @property
    def bulk_share(self) -> float:
        """Bulk share of recent batch tokens, counted while bulk work waited; 1 if unknown."""
        return self._recent_bulk_tokens / self._recent_tokens if self._recent_bulk_tokens else 1.0

    def append(self, job: Job) -> None:
        """Put a job at the end of its class."""
        if job.bulk:
            self.bulk.append(job)
            self.bulk_tokens += job.tokens
        else:
            self.interactive.append(job)
            self.interactive_tokens += job.tokens

    def next_class(self, full_batch: float) -> tuple[deque[Job], float]:
        """The jobs of the class that forms the next batch, and the most tokens of that batch.

        `full_batch` is the token budget of an interactive batch.
        """
        if self.bulk and (not self.interactive or self._batches_since_bulk >= BULK_EVERY):
            return self.bulk, full_batch * BULK_BATCH_SHARE
        return self.interactive, full_batch

    def pop(self, waiting: deque[Job]) -> Job:
        """Remove and return the oldest job of `waiting`, one of the two classes."""
        job = waiting.popleft()
        if job.bulk:
            self.bulk_tokens -= job.tokens
        else:
            self.interactive_tokens -= job.tokens
        return job

    def record_batch(self, waiting: deque[Job], tokens: int) -> None:
        """Count a batch of this many tokens that was formed from the class `waiting`."""
        if waiting is not self.bulk and not self.bulk:
            self._batches_since_bulk = 0
            return
        bulk_tokens = tokens if waiting is self.bulk else 0
        self._batches_since_bulk = 0 if bulk_tokens else self._batches_since_bulk + 1
        self._recent_tokens = RECENT_DECAY * self._recent_tokens + tokens
        self._recent_bulk_tokens = RECENT_DECAY * self._recent_bulk_tokens + bulk_tokens

    def evict(self, tokens: int) -> list[Job]:
        """Remove the newest bulk jobs until `tokens` are free or no bulk job remains."""
        evicted: list[Job] = []
        while tokens > 0 and self.bulk:
            job = self.bulk.pop()
            self.bulk_tokens -= job.tokens
            tokens -= job.tokens
            evicted.append(job)
        return evicted

    def clear(self) -> list[Job]:
        """Remove and return all waiting jobs."""
        jobs = [*self.interactive, *self.bulk]
        self.interactive.clear()
        self.bulk.clear()
        self.interactive_tokens = self.bulk_tokens = 0
        return jobs
