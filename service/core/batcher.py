"""MicroBatcher: many small requests in, few full batches out, and no waiter ever left hanging.

Greedy: whenever a lane is free it takes whatever waits, up to a token budget, so an idle service
adds no wait. One job is one request. All state belongs to the event loop's thread; a lane is a
thread that only computes and posts its outcome back, so every future is touched on the loop alone.

It does not time its callers out: a waiter bounds its own wait, settles or cancels its future, and
the batcher then drops the job. Used by `service.api`, whose waiter is `service.api.watch`.
"""

import asyncio
import contextlib
import contextvars
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Final, Protocol

from service.core.adaptive_effort import AdaptiveEffort
from service.core.types import PredictedBatch, Prediction, Query, StageTimings
from service.errors import (
    AstrolabeError,
    DeadlineExceeded,
    NotReady,
    PayloadTooLarge,
    PredictFailed,
    QueueFull,
    ShuttingDown,
)

log = logging.getLogger(__name__)

BYTES_PER_TOKEN: Final = 3
"""A little below English word pieces (about 4), and right for scripts of one token a character."""

SPECIAL_TOKENS: Final = 2
MAX_RETRY_AFTER_S: Final = 60.0
RATE_SMOOTHING: Final = 0.2

PredictFn = Callable[[Sequence[Query]], PredictedBatch]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What bounds a batcher; `max_tokens` is the longest one text can become."""

    lanes: int
    max_tokens: int
    max_batch_tokens: int
    max_queue_tokens: int
    batch_wait_s: float = 0.0
    stuck_after_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One job's queries as they were computed, their predictions, and where its time went."""

    queries: Sequence[Query]
    predictions: list[Prediction]
    timings: StageTimings
    queue_s: float
    batch_queries: int


class BatchObserver(Protocol):
    """What a batcher reports; called on the event loop's thread."""

    def queued(self, seconds: float) -> None:
        """One job waited this long for its lane."""
        ...

    def batch_done(self, n_queries: int, timings: StageTimings) -> None:
        """One batch was computed."""
        ...

    def dropped(self, reason: str) -> None:
        """One job was dropped before compute: expired, abandoned or shutting_down."""
        ...

    def rejected(self, reason: str) -> None:
        """One job was refused at admission, with this error code."""
        ...


@dataclass(slots=True, eq=False)
class _Job:
    queries: Sequence[Query]
    tokens: int
    submitted_s: float
    deadline_s: float
    future: "asyncio.Future[Answer]"


class _Lane:
    """A thread with an inbox; `jobs` and `since_s` are set while it computes.

    Not an executor's thread: those are joined at exit, so one stuck call would keep the process
    alive for ever, and a round trip through one costs 48 microseconds of CPU where this costs 25.
    """

    __slots__ = ("died", "inbox", "jobs", "since_s", "thread")

    def __init__(self, name: str, body: Callable[["_Lane"], None]) -> None:
        self.inbox: SimpleQueue[list[Query] | None] = SimpleQueue()
        self.jobs: list[_Job] = []
        self.since_s = math.inf
        self.died = False
        self.thread = Thread(target=body, args=(self,), name=name, daemon=True)


def estimate_tokens(text: str, max_tokens: int) -> int:
    """Tokens that a text will cost, without tokenising it; never above `max_tokens`.

    >>> estimate_tokens("moby dick", 64), estimate_tokens("x" * 9000, 64)
    (5, 64)
    """
    return min(max_tokens, SPECIAL_TOKENS + len(text.encode(errors="replace")) // BYTES_PER_TOKEN)


class MicroBatcher:
    """Admission, batching, lanes, drain. `start` it inside the loop that will call `submit`."""

    def __init__(
        self,
        predict: PredictFn,
        limits: BatchLimits,
        observer: BatchObserver,
        clock: Callable[[], float] = time.perf_counter,
        effort: AdaptiveEffort | None = None,
    ) -> None:
        self.limits = limits
        self.waiting_tokens = 0
        self._predict = predict
        self._observer = observer
        self._clock = clock
        self._effort = effort
        self._queue: deque[_Job] = deque()
        self._lanes: list[_Lane] = []
        self._free: list[_Lane] = []
        self._dispatch_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed: type[AstrolabeError] | None = NotReady
        self._settled = asyncio.Event()
        self._tokens_per_s = 0.0
        self._moved_s = 0.0

    def start(self) -> None:
        """Start the lanes; the running loop becomes the one that owns all state."""
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        for number in range(self.limits.lanes):
            lane = _Lane(f"lane-{number}", self._run_lane)
            self._lanes.append(lane)
            self._free.append(lane)
            lane.thread.start()
        self._closed = None

    def submit(self, queries: Sequence[Query], deadline_s: float) -> "asyncio.Future[Answer]":
        """Admit one request's queries; the one place where work is accepted or refused.

        `deadline_s` is on this batcher's clock. The caller bounds its own wait for the future.
        Raises QueueFull, PayloadTooLarge, NotReady, ShuttingDown.
        """
        max_tokens = self.limits.max_tokens
        tokens = sum([estimate_tokens(query.text, max_tokens) for query in queries])
        if self._closed is not None or self.waiting_tokens + tokens > self.limits.max_queue_tokens:
            refusal = self._refusal(tokens)
            self._observer.rejected(refusal.code)
            raise refusal
        now = self._clock()
        if not self._queue:
            self._moved_s = now
        job = _Job(queries, tokens, now, deadline_s, self._loop.create_future())
        self._queue.append(job)
        self.waiting_tokens += tokens
        if self._free and not self._dispatch_scheduled:
            # Not at once: requests that arrived in the same turn of the loop share the batch.
            self._dispatch_scheduled = True
            # And in no request's context: what a dispatch logs is about all of them.
            self._loop.call_soon(self._dispatch, context=self._context)
        return job.future

    def oldest_wait_s(self) -> float:
        """How long the oldest job that waits has waited; 0 where none does."""
        return self._clock() - self._queue[0].submitted_s if self._queue else 0.0

    def health(self) -> str | None:
        """None while work moves, else one sentence that says what does not."""
        now, bound = self._clock(), self.limits.stuck_after_s
        if not self._lanes:
            return "the lanes have not started"
        if dead := sum(lane.died or not lane.thread.is_alive() for lane in self._lanes):
            return f"{dead} of {len(self._lanes)} lanes have died"
        longest = max(now - lane.since_s for lane in self._lanes)
        if longest > bound:
            return f"a batch has been computing for {longest:.0f} s, the bound is {bound:g} s"
        if self._queue and now - self._moved_s > bound:
            return f"the queue has not moved for {now - self._moved_s:.0f} s"
        return None

    async def drain(self, timeout_s: float) -> None:
        """Stop intake, finish what was accepted until the timeout, fail the rest, end the lanes."""
        self._closed = ShuttingDown
        self._dispatch()
        try:
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()
        except TimeoutError:
            log.warning("drain timed out, failing what is left")
        self._fail_waiting(ShuttingDown("the service stopped before this request was computed"))
        for lane in self._lanes:
            self._fail(lane.jobs, ShuttingDown("the service stopped while this was computed"))
            lane.inbox.put(None)
            if not lane.jobs:
                lane.thread.join(timeout=1.0)
        self._settled.set()  # a drain that still waits has nothing left to wait for

    def _refusal(self, tokens: int) -> AstrolabeError:
        limit = self.limits.max_queue_tokens
        if self._closed is not None:
            return self._closed("the service takes no new work now", retry_after_s=1.0)
        if tokens > limit:
            return PayloadTooLarge(
                f"the texts make about {tokens} tokens, the queue holds {limit}: send fewer at once"
            )
        wait_s = self.waiting_tokens / self._tokens_per_s if self._tokens_per_s else 1.0
        return QueueFull(
            f"{self.waiting_tokens} tokens wait already, {limit} may: try again later",
            retry_after_s=min(MAX_RETRY_AFTER_S, max(1.0, wait_s)),
        )

    def _dispatch(self) -> None:
        """Give waiting work to free lanes."""
        self._dispatch_scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._free and self._queue:
            if (wait_s := self._wait_for_more_s()) > 0:
                self._timer = self._loop.call_later(wait_s, self._dispatch)
                return
            now = self._clock()
            jobs = self._take(now)
            if not jobs:
                continue
            lane = self._free.pop()
            lane.jobs, lane.since_s = jobs, now
            for job in jobs:
                self._observer.queued(now - job.submitted_s)
            lane.inbox.put([query for job in jobs for query in job.queries])
        self._settle_if_idle()

    def _wait_for_more_s(self) -> float:
        """How long the oldest job may still wait for company; 0 unless batch_wait_s is set."""
        limits = self.limits
        if limits.batch_wait_s == 0 or self.waiting_tokens >= limits.max_batch_tokens:
            return 0.0
        if self._closed is not None:
            return 0.0
        return self._queue[0].submitted_s + limits.batch_wait_s - self._clock()

    def _take(self, now: float) -> list[_Job]:
        """The oldest jobs that fit the token budget, at least one; the dead are dropped."""
        jobs: list[_Job] = []
        budget = self.limits.max_batch_tokens
        queue, effort = self._queue, self._effort
        if effort is not None:
            effort.waited(now - queue[0].submitted_s)  # also where it is dropped for having waited
        while queue and (not jobs or queue[0].tokens <= budget):
            job = queue.popleft()
            self.waiting_tokens -= job.tokens
            if job.future.done() or now >= job.deadline_s:
                self._drop(job, now)
                continue
            budget -= job.tokens
            if effort is not None:
                job.queries = effort.capped(job.queries)
            jobs.append(job)
        self._moved_s = now
        return jobs

    def _drop(self, job: _Job, now: float) -> None:
        expired = now >= job.deadline_s
        self._observer.dropped("expired" if expired else "abandoned")
        if not job.future.done():
            job.future.set_exception(DeadlineExceeded("the deadline passed while this waited"))

    def _run_lane(self, lane: _Lane) -> None:
        """Body of a lane's thread: compute, post the outcome, never touch a future."""
        post = self._loop.call_soon_threadsafe
        try:
            while (queries := lane.inbox.get()) is not None:
                try:
                    outcome = self._checked(queries)
                except BaseException as exc:  # a lane outlives whatever a batch raises
                    post(self._finish, lane, exc)
                else:
                    post(self._finish, lane, outcome)
        except RuntimeError:
            log.debug("the loop closed before lane %s", lane.thread.name)
        finally:
            with contextlib.suppress(RuntimeError):
                post(self._lane_died, lane)

    def _checked(self, queries: list[Query]) -> PredictedBatch:
        batch = self._predict(queries)
        if len(batch.predictions) != len(queries):
            raise RuntimeError(f"{len(batch.predictions)} predictions for {len(queries)} queries")
        return batch

    def _finish(self, lane: _Lane, outcome: PredictedBatch | BaseException) -> None:
        """Free the lane, give it the next batch, then wake the callers of the last one."""
        jobs, started_s = lane.jobs, lane.since_s
        lane.jobs, lane.since_s = [], math.inf
        self._free.append(lane)
        self._measure_rate(jobs, self._clock() - started_s)
        self._dispatch()
        if isinstance(outcome, BaseException):
            texts = {"private": [query.text for job in jobs for query in job.queries]}
            log.error("a batch of %d requests failed", len(jobs), exc_info=outcome, extra=texts)
            self._fail(jobs, PredictFailed("the batch of this request broke: try again"))
            return
        timings = outcome.timings
        start, total = 0, len(outcome.predictions)
        for job in jobs:
            end = start + len(job.queries)
            if not job.future.done():  # the client may have left
                predictions, waited_s = outcome.predictions[start:end], started_s - job.submitted_s
                job.future.set_result(Answer(job.queries, predictions, timings, waited_s, total))
            start = end
        self._observer.batch_done(start, timings)

    def _lane_died(self, lane: _Lane) -> None:
        if self._closed is ShuttingDown:
            return  # drain ended it
        lane.died = True  # its thread may still be on its way out
        log.error("lane %s has died", lane.thread.name)
        if lane in self._free:
            self._free.remove(lane)
        self._fail(lane.jobs, PredictFailed("the lane that computed this died: try again"))
        lane.jobs = []
        if all(other.died for other in self._lanes):
            self._closed = NotReady
            self._fail_waiting(NotReady("every lane has died: the service must be restarted"))

    def _fail_waiting(self, error: AstrolabeError) -> None:
        for _ in self._queue:
            self._observer.dropped(error.code)
        self._fail(self._queue, error)
        self._queue.clear()
        self.waiting_tokens = 0

    def _fail(self, jobs: "Sequence[_Job] | deque[_Job]", error: AstrolabeError) -> None:
        for job in jobs:
            if not job.future.done():
                # One exception object each: raising it writes a traceback into it.
                job.future.set_exception(type(error)(error.detail, retry_after_s=1.0))

    def _measure_rate(self, jobs: list[_Job], seconds: float) -> None:
        rate = sum(job.tokens for job in jobs) * len(self._lanes) / max(seconds, 1e-6)
        if self._tokens_per_s:
            rate = self._tokens_per_s + RATE_SMOOTHING * (rate - self._tokens_per_s)
        self._tokens_per_s = rate

    def _settle_if_idle(self) -> None:
        if self._closed and not self._queue and not any(lane.jobs for lane in self._lanes):
            self._settled.set()
