"""MicroBatcher: groups many small requests into few full batches, and answers every one of them.

Batching is greedy: a free lane takes the waiting jobs at once, up to a token budget, so an idle
service adds no wait. One job is one request. The event loop's thread owns all state. A lane is a
thread that only computes and hands its outcome to the loop, so only the loop settles futures.

Overload: `submit` refuses a request if the queue is full, or if at the measured pace the answer
would come after the deadline. If a lane is free it admits the request without an estimate. So an
idle service refuses nobody, and the next batch corrects a wrong estimate.

The batcher does not time out its callers. A caller bounds its own wait and settles or cancels the
future; the batcher then drops the job. The caller in the service is `service.api.endpoint`.
"""

import asyncio
import contextlib
import contextvars
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from service.core.batching.adaptive_effort import AdaptiveEffort
from service.core.batching.admission import Admission, BatchLimits
from service.core.batching.job import Answer, Job
from service.core.batching.job_queue import JobQueue
from service.core.batching.lane import Lane
from service.core.batching.pace import LAG_TURNS, Pace
from service.core.types import PredictedBatch, Query, StageTimings
from service.errors import (
    AstrolabeError,
    DeadlineExceeded,
    NotReady,
    PredictFailed,
    ShuttingDown,
)

log = logging.getLogger(__name__)

BYTES_PER_TOKEN: Final = 3
"""UTF-8 bytes of text that count as one token. English word pieces have about 4; scripts with one
token a character, such as Chinese, have 3. A choice: it overestimates English a little."""

SPECIAL_TOKENS: Final = 2
"""A tokenizer of the BERT family adds two: one before and one after the text."""

PredictFn = Callable[[Sequence[Query]], PredictedBatch]


class BatchObserver(Protocol):
    """Receives a batcher's events, on the event loop's thread."""

    def queued(self, seconds: float) -> None:
        """A job waited this many seconds and now goes to a lane."""
        ...

    def batch_done(self, n_queries: int, timings: StageTimings) -> None:
        """A lane has computed a batch of `n_queries` queries."""
        ...

    def dropped(self, reason: str) -> None:
        """A job left the queue uncomputed.

        `reason` is `expired`, `evicted`, `abandoned`, or the code of the error that closed the
        queue (`shutting_down`, `not_ready`).
        """
        ...

    def rejected(self, reason: str) -> None:
        """Admission refused a job with this error code."""
        ...


def estimate_tokens(text: str, max_tokens: int) -> int:
    """Estimate a text's tokens from its bytes, without tokenising it; at most `max_tokens`.

    >>> estimate_tokens("moby dick", 64), estimate_tokens("x" * 9000, 64)
    (5, 64)
    """
    return min(max_tokens, SPECIAL_TOKENS + len(text.encode(errors="replace")) // BYTES_PER_TOKEN)


class MicroBatcher:
    """Admits, batches, computes and drains. Call `start` in the loop that will call `submit`."""

    def __init__(
        self,
        predict: PredictFn,
        limits: BatchLimits,
        observer: BatchObserver,
        clock: Callable[[], float] = time.perf_counter,
        effort: AdaptiveEffort | None = None,
    ) -> None:
        self.limits = limits
        self._predict = predict
        self._observer = observer
        self._clock = clock
        self._effort = effort
        self._queue = JobQueue()
        self._pace = Pace(limits.lanes)
        self._admission = Admission(limits, self._queue, self._pace)
        self._job_tokens = 0.0  # mean tokens of a job in the newest batch
        self._lanes: list[Lane] = []
        self._free: list[Lane] = []
        self._dispatch_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed: type[AstrolabeError] | None = NotReady
        self._settled = asyncio.Event()
        self._moved_s = 0.0

    def start(self) -> None:
        """Start the lanes; the running event loop becomes the owner of all state."""
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        for number in range(self.limits.lanes):
            lane = Lane(f"lane-{number}", self._run_lane)
            self._lanes.append(lane)
            self._free.append(lane)
            lane.thread.start()
        self._closed = None

    @property
    def waiting_tokens(self) -> int:
        """Estimated tokens of all jobs that wait for a lane."""
        return self._queue.tokens

    def submit(
        self, queries: Sequence[Query], deadline_s: float, bulk: bool = False
    ) -> "asyncio.Future[Answer]":
        """Admit one request's queries, or refuse them; no other method accepts work.

        `deadline_s` is a time on this batcher's clock. Await the future with a timeout of your own.
        Raises QueueFull, DeadlineUnreachable, PayloadTooLarge, NotReady, ShuttingDown.
        """
        max_tokens = self.limits.max_tokens
        tokens = sum(
            [estimate_tokens(text, max_tokens) for query in queries for text in query.texts]
        )
        now, queue = self._clock(), self._queue
        at_once = self._at_once(tokens, bulk)
        if self._closed is not None or not at_once:
            self._admit(tokens, now, deadline_s, bulk)
        if not queue:
            self._moved_s = now
        job = Job(queries, tokens, now, deadline_s, self._loop.create_future(), bulk, at_once)
        queue.append(job)
        if self._free and not self._dispatch_scheduled:
            # Dispatch in the next turn: requests of this turn of the loop then share a batch.
            self._dispatch_scheduled = True
            # Use the context of `start`: the log lines of a dispatch concern all its requests.
            self._loop.call_soon(self._dispatch, context=self._context)
        return job.future

    def check_room(self, deadline_s: float, bulk: bool = False) -> None:
        """Refuse a request whose body is still unread if `submit` would; raises what it raises."""
        self._raise(self.refusal(deadline_s, bulk))

    def refusal(
        self, deadline_s: float, bulk: bool = False, others: int = 0
    ) -> AstrolabeError | None:
        """The error that `submit` would raise for one more request, or None if it would admit it.

        `others` more requests are already on their way to `submit`. All are assumed to be as large
        as the mean job of the newest batch.
        """
        now = self._clock()
        tokens = min(int(self._job_tokens * (1 + others)), self.limits.max_waiting_tokens(bulk))
        if self._closed is None and self._at_once(tokens, bulk, others):
            return None
        return self._judgement(tokens, now, deadline_s, bulk)

    def oldest_wait_s(self) -> float:
        """Seconds that the oldest waiting interactive job has waited; 0 if none waits."""
        waiting = self._queue.interactive
        return self._clock() - waiting[0].submitted_s if waiting else 0.0

    def health(self) -> str | None:
        """None while work moves, else one sentence that says what is stuck or dead."""
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
        """Stop admitting, finish accepted jobs until the timeout, fail the rest, end the lanes."""
        self._closed = ShuttingDown
        self._dispatch()
        try:
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()
        except TimeoutError:
            log.warning("drain timed out, failing the jobs that remain")
        self._fail_waiting(ShuttingDown("the service stopped before this request was computed"))
        for lane in self._lanes:
            self._fail(lane.jobs, ShuttingDown("the service stopped while this was computed"))
            lane.inbox.put(None)
            if not lane.jobs:
                lane.thread.join(timeout=1.0)
        self._settled.set()  # wakes another drain that still waits

    def _at_once(self, tokens: int, bulk: bool, others: int = 0) -> bool:
        """Whether a free lane can take this job together with the jobs that wait for this turn.

        If nothing waits, the pace has no say: a wrong estimate could otherwise refuse everything.
        """
        if not self._free:
            return False
        if self._queue or others:
            return self._queue.tokens + tokens <= self._admission.full_batch
        return tokens <= self.limits.max_waiting_tokens(bulk)

    def _admit(self, tokens: int, now: float, deadline_s: float, bulk: bool) -> None:
        """Raise if the job must not wait; otherwise evict bulk jobs until it fits."""
        self._raise(self._judgement(tokens, now, deadline_s, bulk))
        over = self._queue.tokens + tokens - self.limits.max_queue_tokens
        if over > 0:
            for job in self._queue.evict(over):
                self._drop(job, now, "evicted", self._admission.full(bulk=True))

    def _judgement(
        self, tokens: int, now: float, deadline_s: float, bulk: bool
    ) -> AstrolabeError | None:
        if self._closed is not None:
            return self._closed("the service takes no new work now", retry_after_s=1.0)
        lag_s = LAG_TURNS * self._pace.lag_s(now)
        return self._admission.refusal(
            tokens, deadline_s - now, bulk, lane_free=bool(self._free), lag_s=lag_s
        )

    def _raise(self, refusal: AstrolabeError | None) -> None:
        if refusal is not None:
            self._observer.rejected(refusal.code)
            try:
                raise refusal
            finally:
                # Its traceback holds this frame. Breaking the cycle frees it without the collector.
                del refusal

    def _dispatch(self) -> None:
        """Give batches of waiting jobs to the free lanes."""
        self._dispatch_scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._free and self._queue:
            if (wait_s := self._wait_for_more_s()) > 0:
                self._timer = self._loop.call_later(wait_s, self._dispatch)
                return
            now = self._clock()
            if not (jobs := self._take(now)):
                self._pace.doubt()
                continue
            lane = self._free.pop()
            lane.jobs, lane.since_s = jobs, now
            lane.inbox.put([query for job in jobs for query in job.queries])
            for job in jobs:
                self._observer.queued(now - job.submitted_s)
        self._settle_if_idle()

    def _wait_for_more_s(self) -> float:
        """Seconds that a free lane still waits for a fuller batch; 0 unless batch_wait_s is set."""
        limits = self.limits
        full_batch = self._admission.full_batch
        if limits.batch_wait_s == 0 or self.waiting_tokens >= full_batch:
            return 0.0
        if self._closed is not None:
            return 0.0
        waiting, _ = self._queue.next_class(full_batch)
        return waiting[0].submitted_s + limits.batch_wait_s - self._clock()

    def _take(self, now: float) -> list[Job]:
        """Form a batch: the oldest jobs of one class that fit its token budget, at least one.

        It drops jobs whose caller has left and jobs that cannot finish in time; if it drops all of
        them the batch is empty. It adds no job that would make another one in the batch late.
        """
        jobs: list[Job] = []
        queue, effort = self._queue, self._effort
        waiting, budget = queue.next_class(self._admission.full_batch)
        if effort is not None and not waiting[0].bulk:  # bulk work waits by design
            # A job that expired counts too: its wait is a sign of overload.
            effort.record_wait(now - waiting[0].submitted_s)
        done_s = now + self._pace.least_compute_s
        tokens = 0
        while waiting and (not jobs or tokens + waiting[0].tokens <= budget):
            job = queue.pop(waiting)
            if job.future.done() or (now if job.at_once else done_s) >= job.deadline_s:
                self._drop_late(job, now)
                continue
            tokens += job.tokens
            budget = min(budget, self._pace.tokens_within(job.deadline_s - now))
            if effort is not None:
                job.queries = effort.cap(job.queries)
            jobs.append(job)
        if jobs:
            self._job_tokens = tokens / len(jobs)
            queue.record_batch(waiting, tokens)
        self._moved_s = now
        return jobs

    def _drop_late(self, job: Job, now: float) -> None:
        why = "the deadline passed" if now >= job.deadline_s else "it became too late to compute"
        self._drop(job, now, "expired", DeadlineExceeded(f"{why} while it waited"))

    def _drop(self, job: Job, now: float, reason: str, error: AstrolabeError) -> None:
        """Report a job that no lane will compute, and fail its future if it is still open."""
        if job.future.done():
            reason = "expired" if now >= job.deadline_s else "abandoned"
        else:
            job.future.set_exception(error)
        self._observer.dropped(reason)

    def _run_lane(self, lane: Lane) -> None:
        """Body of a lane's thread: it computes and posts outcomes, and settles no future."""
        post = self._loop.call_soon_threadsafe
        try:
            while (queries := lane.inbox.get()) is not None:
                try:
                    outcome: PredictedBatch | BaseException = self._checked(queries)
                except BaseException as exc:  # a batch that raises must not end the lane
                    outcome = exc
                post(self._finish, lane, outcome, self._clock())
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

    def _finish(
        self, lane: Lane, outcome: PredictedBatch | BaseException, finished_s: float
    ) -> None:
        """Free the lane, give it its next batch, then answer the jobs of the last one."""
        jobs, started_s = lane.jobs, lane.since_s
        lane.jobs, lane.since_s = [], math.inf
        self._free.append(lane)
        tokens = sum([job.tokens for job in jobs])
        more_waiting = bool(self._queue.bulk if jobs and jobs[0].bulk else self._queue.interactive)
        now = self._clock()
        self._pace.record_notice(now, started_s, finished_s)
        self._pace.record_batch(tokens, finished_s - started_s, more_waiting)
        self._dispatch()
        if isinstance(outcome, BaseException):
            texts = {
                "private": [text for job in jobs for query in job.queries for text in query.texts]
            }
            log.error("a batch of %d requests failed", len(jobs), exc_info=outcome, extra=texts)
            self._fail(jobs, PredictFailed("the batch of this request broke: try again"))
            return
        timings = outcome.timings
        start, total = 0, len(outcome.predictions)
        for job in jobs:
            end = start + len(job.queries)
            if not job.future.done():  # it is done if the client has left
                predictions, waited_s = outcome.predictions[start:end], started_s - job.submitted_s
                job.future.set_result(Answer(job.queries, predictions, timings, waited_s, total))
            start = end
        self._observer.batch_done(start, timings)

    def _lane_died(self, lane: Lane) -> None:
        if self._closed is ShuttingDown:
            return  # `drain` ended the lane
        lane.died = True  # a flag, because the thread may still be alive for a moment
        log.error("lane %s has died", lane.thread.name)
        if lane in self._free:
            self._free.remove(lane)
        self._fail(lane.jobs, PredictFailed("the lane that computed this died: try again"))
        lane.jobs = []
        if all(other.died for other in self._lanes):
            self._closed = NotReady
            self._fail_waiting(NotReady("every lane has died: the service must be restarted"))

    def _fail_waiting(self, error: AstrolabeError) -> None:
        waiting = self._queue.clear()
        for _ in waiting:
            self._observer.dropped(error.code)
        self._fail(waiting, error)

    def _fail(self, jobs: Sequence[Job], error: AstrolabeError) -> None:
        for job in jobs:
            if not job.future.done():
                # Each future needs its own exception: raising one writes a traceback into it.
                job.future.set_exception(type(error)(error.detail, retry_after_s=1.0))

    def _settle_if_idle(self) -> None:
        if self._closed and not self._queue and not any(lane.jobs for lane in self._lanes):
            self._settled.set()
