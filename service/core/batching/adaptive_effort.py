"""AdaptiveEffort: a ceiling on effort that falls while requests wait and rises when they do not.

The rule is CoDel's (Nichols and Jacobson, 2012): the ceiling falls only if waits stay above the
target for a whole interval, because one slow batch is not yet a queue. The wait of a batch is that
of its oldest request. A step up is a trial. If the service has to undo it, the next trial comes
after twice the time; a load that only a lower effort can carry thus sees few failed trials.
docs/decisions/0015 gives the reasons.

This module computes no answers and holds no queue. `service.core.batching.batcher` reports waits
to it and asks it which effort to compute, always on the event loop's thread.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from service.bundle.manifest import OperatingPoint
from service.core.types import Query

log = logging.getLogger(__name__)

MAX_HOLDS: Final = 8
"""The time before a trial doubles up to this many times `hold_s`.

A choice: with the default hold of 5 s an overload that lasts sees one trial every 40 s
(docs/decisions/0015); more would notice the end of the overload later.
"""


@dataclass(frozen=True, slots=True)
class EffortPolicy:
    """When the ceiling moves; all times in seconds.

    It goes down one step when every wait of an `interval_s` was above `target_s`. It goes up one
    step after `hold_s` in which no `interval_s` had all its waits above `clear_s`, and to the top
    after `hold_s` in which nothing waited.
    """

    target_s: float
    clear_s: float
    interval_s: float
    hold_s: float


def steps_of(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """The operating points that can be the ceiling, cheapest first by measured search time.

    Each has a higher recall than every cheaper one. The order comes from measurements and not from
    names: `exact` stands below `thorough` if scanning everything is cheaper. The costliest point is
    always the last step, whatever its recall, because that ceiling changes no request.
    """
    steps: list[OperatingPoint] = []
    for point in sorted(points, key=lambda point: (point.search_us_p50, -point.recall_at_10)):
        if not steps or point.recall_at_10 > steps[-1].recall_at_10:
            steps.append(point)
    costliest = max(points, key=lambda point: point.search_us_p50)
    if costliest.search_us_p50 > steps[-1].search_us_p50:
        steps.append(costliest)
    return steps


class AdaptiveEffort:
    """The ceiling in force; `steps` are its possible names, cheapest first."""

    def __init__(
        self,
        points: Sequence[OperatingPoint],
        policy: EffortPolicy,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        steps = steps_of(points)
        self.steps = [point.name for point in steps]
        # The lowest ceiling that does not change a query of this effort.
        self._step_of = {
            point.name: sum(step.search_us_p50 < point.search_us_p50 for step in steps)
            for point in points
        }
        self._policy = policy
        self._clock = clock
        self._step = len(steps) - 1
        self._hold_s = policy.hold_s
        self._trial_s = -math.inf  # time of the last step up; -inf once a step down has followed
        self._requested_step = (
            0  # highest step that a query requested while waits were above the target
        )
        self._last_batch_s = self._calm_since_s = clock()
        # Since when all waits have been above the target, and above the clear threshold.
        self._above_target_s = self._above_clear_s = math.inf

    def record_wait(self, seconds: float) -> None:
        """Take the wait of the next batch's oldest request, and move the ceiling if it is time."""
        now, policy = self._clock(), self._policy
        self._nothing_waited_until(now - seconds)
        self._last_batch_s = now
        if seconds > policy.target_s:
            self._above_target_s = min(self._above_target_s, now)
        else:
            self._above_target_s, self._requested_step = math.inf, 0
        self._above_clear_s = (
            min(self._above_clear_s, now) if seconds > policy.clear_s else math.inf
        )
        if now - self._above_target_s >= policy.interval_s:
            self._lower(now, seconds)
        if now - self._above_clear_s >= policy.interval_s:
            self._calm_since_s = now
        elif seconds <= policy.clear_s and now - self._calm_since_s >= self._hold_s:
            self._raise(now, seconds)

    def cap(self, queries: Sequence[Query]) -> Sequence[Query]:
        """The queries with every effort above the ceiling lowered to it.

        A query below the ceiling keeps its effort, and so does one with `effort_strict`.
        """
        highest = max((self._step_of[q.effort] for q in queries if not q.effort_strict), default=0)
        self._requested_step = max(self._requested_step, highest)
        if highest <= self._step:
            return queries
        ceiling = self.steps[self._step]
        return [
            query
            if query.effort_strict or self._step_of[query.effort] <= self._step
            else replace(query, effort=ceiling)
            for query in queries
        ]

    def steps_down(self, oldest_wait_s: float) -> int:
        """By how many steps the ceiling is lowered now; 0 means not at all.

        `oldest_wait_s` is the wait of the oldest request in the queue, in seconds. The batcher does
        not report an empty queue, so this call also detects idle time.
        """
        self._nothing_waited_until(self._clock() - oldest_wait_s)
        return len(self.steps) - 1 - self._step

    def _nothing_waited_until(self, until_s: float) -> None:
        """Account for an empty queue between the last batch and `until_s`."""
        empty_s = until_s - self._last_batch_s
        if empty_s >= self._policy.interval_s:
            self._above_target_s = self._above_clear_s = math.inf
        if empty_s >= self._policy.hold_s:
            self._last_batch_s = until_s
            self._hold_s, self._trial_s = self._policy.hold_s, -math.inf
            self._move(len(self.steps) - 1, until_s, 0.0)

    def _lower(self, now: float, wait_s: float) -> None:
        # Skip steps that would change no waiting query; stay if every step down is such a step.
        step = min(self._step, self._requested_step) - 1
        self._above_target_s, self._requested_step = now, 0
        if step < 0:
            return
        if self._trial_s > -math.inf:
            undone = now - self._trial_s < self._hold_s
            longer_s = min(2 * self._hold_s, MAX_HOLDS * self._policy.hold_s)
            self._hold_s = longer_s if undone else self._policy.hold_s
        self._trial_s = -math.inf
        self._move(step, now, wait_s)

    def _raise(self, now: float, wait_s: float) -> None:
        if self._step == len(self.steps) - 1:
            return
        if self._trial_s > -math.inf:  # no step down followed: the last trial succeeded
            self._hold_s = self._policy.hold_s
        self._trial_s = now
        self._move(self._step + 1, now, wait_s)

    def _move(self, step: int, now: float, wait_s: float) -> None:
        old_step, self._step, self._calm_since_s = self._step, step, now
        if step == old_step:
            return
        fields = {
            "was": self.steps[old_step],
            "ceiling": self.steps[step],
            "waited_ms": round(wait_s * 1e3, 3),
        }
        if step < old_step:
            log.warning("effort ceiling lowered", extra={"fields": fields})
        else:
            log.info("effort ceiling raised", extra={"fields": fields})
