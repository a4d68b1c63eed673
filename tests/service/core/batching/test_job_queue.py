"""The queue by itself: whose turn it is, what gives way, and that every token is counted."""

import asyncio
from collections.abc import Iterator

import pytest

from service.core.batching.job import Job
from service.core.batching.job_queue import BULK_BATCH_SHARE, BULK_EVERY, JobQueue


@pytest.fixture
def future() -> Iterator["asyncio.Future[object]"]:
    loop = asyncio.new_event_loop()
    yield loop.create_future()
    loop.close()


class Shelf:
    """A queue that is filled and emptied by tokens: 5 is an interactive job, -5 a bulk one."""

    def __init__(self, future: "asyncio.Future[object]") -> None:
        self.queue = JobQueue()
        self._future = future

    def fill(self, *tokens: int) -> None:
        for each in tokens:
            job = Job([], abs(each), 0.0, 1.0, self._future, bulk=each < 0)  # type: ignore[arg-type]
            self.queue.append(job)

    def take(self, full_batch: float = 64.0) -> list[int]:
        """Make the next batch as the batcher does: one class, one job at least."""
        waiting, budget = self.queue.next_class(full_batch)
        batch: list[Job] = []
        while waiting and (
            not batch or sum(job.tokens for job in batch) + waiting[0].tokens <= budget
        ):
            batch.append(self.queue.pop(waiting))
        self.queue.record_batch(waiting, sum(job.tokens for job in batch))
        return signed(batch)


def signed(jobs: list[Job]) -> list[int]:
    return [-job.tokens if job.bulk else job.tokens for job in jobs]


@pytest.fixture
def shelf(future: "asyncio.Future[object]") -> Shelf:
    return Shelf(future)


@pytest.mark.parametrize(
    ("tokens", "batches"),
    [
        ([], [[]]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([40, 30, 20], [[40], [30, 20]]),
        ([100, 5], [[100], [5]]),  # more than a batch holds goes alone
        ([-5, 6], [[6], [-5]]),
        ([-3, -4, -5], [[-3, -4], [-5]]),  # an eighth of 64 tokens
        ([-60, -5], [[-60], [-5]]),
    ],
)
def test_batches_hold_one_class_in_the_order_of_arrival(
    shelf: Shelf, tokens: list[int], batches: list[list[int]]
) -> None:
    shelf.fill(*tokens)
    assert [shelf.take() for _ in batches] == batches
    assert not shelf.queue


@pytest.mark.parametrize("rounds", [1, 3])
def test_bulk_work_has_its_turn_after_so_many_batches_that_passed_it_over(
    shelf: Shelf, rounds: int
) -> None:
    shelf.fill(*[-8] * rounds, *[64] * rounds * BULK_EVERY)
    batches = [shelf.take() for _ in range(rounds * (BULK_EVERY + 1))]
    assert batches == [*[[64]] * BULK_EVERY, [-8]] * rounds


def test_batches_count_only_while_bulk_work_waits(shelf: Shelf) -> None:
    shelf.fill(*[64] * BULK_EVERY)
    for _ in range(BULK_EVERY):
        shelf.take()
    shelf.fill(-8, 64)
    assert shelf.take() == [64]


def test_bulk_work_that_gave_way_leaves_its_count_to_nobody(shelf: Shelf) -> None:
    shelf.fill(-8, *[64] * (BULK_EVERY + 1))
    for _ in range(BULK_EVERY):
        shelf.take()
    shelf.queue.evict(8)
    shelf.take()
    shelf.fill(-8, 64)
    assert shelf.take() == [64]


def test_tokens_of_both_classes_are_counted_until_they_leave(shelf: Shelf) -> None:
    shelf.fill(10, -20, 30, -40)
    queue = shelf.queue
    assert (queue.interactive_tokens, queue.bulk_tokens, queue.tokens) == (40, 60, 100)
    assert shelf.take() == [10, 30]
    assert (queue.interactive_tokens, queue.bulk_tokens, queue.tokens) == (0, 60, 60)
    assert shelf.take() == [-20]
    assert (queue.bulk_tokens, bool(queue)) == (40, True)
    assert signed(queue.clear()) == [-40]
    assert (queue.tokens, bool(queue)) == (0, False)


@pytest.mark.parametrize(
    ("tokens", "evicted", "tokens_left"),
    [
        (0, [], 60),
        (1, [-30], 30),
        (30, [-30], 30),
        (31, [-30, -20], 10),
        (1000, [-30, -20], 10),  # interactive work gives way to nobody
    ],
)
def test_the_newest_bulk_work_gives_way_first(
    shelf: Shelf, tokens: int, evicted: list[int], tokens_left: int
) -> None:
    shelf.fill(-20, 10, -30)
    assert signed(shelf.queue.evict(tokens)) == evicted
    assert shelf.queue.tokens == tokens_left


def test_bulk_share_is_whole_until_bulk_work_had_to_share(shelf: Shelf) -> None:
    assert shelf.queue.bulk_share == 1.0
    shelf.fill(64)
    shelf.take()
    assert shelf.queue.bulk_share == 1.0


def test_bulk_share_under_a_long_overload_is_what_the_turns_give(shelf: Shelf) -> None:
    for _ in range(200):
        shelf.fill(*[64] * BULK_EVERY, -8)
        for _ in range(BULK_EVERY + 1):
            shelf.take()
    # Measured at the end of a round, when bulk work was just served, so a little above the mean.
    mean = BULK_BATCH_SHARE / (BULK_EVERY + BULK_BATCH_SHARE)
    assert mean < shelf.queue.bulk_share < 2 * mean
