"""AdaptiveEffort: a ceiling on effort that falls while requests wait and rises when they do not.

As in CoDel (Nichols and Jacobson, 2012), what counts is a wait that never falls below the target
for a whole interval: one slow batch is no queue. Measured is the oldest request of each batch.
A step up is a trial: where it has to be undone, the next one waits twice as long, so that a load
that only a lower effort can carry is not tried at a higher one again and again.

It computes nothing and knows no queue: `service.core.batching.batcher` tells it of waits and asks
it what to compute, on the event loop's thread alone.
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
"""The wait before a trial doubles up to this many times `hold_s`."""


@dataclass(frozen=True, slots=True)
class EffortPolicy:
    """One step down after `interval_s` of waits all above `target_s`.

    One step up after `hold_s` without an interval of waits all above `clear_s`, and all the way up
    after `hold_s` in which nothing waited.
    """

    target_s: float
    clear_s: float
    interval_s: float
    hold_s: float


def steps_of(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """What the ceiling may be, by measured search cost: each finds more than every cheaper one.

    So a name decides nothing, and `exact` stands below `thorough` where scanning all is cheaper.
    The costliest point is the last one whatever it finds: that ceiling lowers nobody.
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
        # The lowest step that leaves this effort alone.
        self._step_of = {
            point.name: sum(step.search_us_p50 < point.search_us_p50 for step in steps)
            for point in points
        }
        self._policy = policy
        self._clock = clock
        self._step = len(steps) - 1
        self._hold_s = policy.hold_s
        self._trial_s = -math.inf  # of the last step up, where no step down has followed
        self._asked = 0  # highest step asked for while waits were above the target
        self._seen_s = self._calm_s = clock()
        self._above_target_s = self._above_clear_s = math.inf  # since when, without a break

    def waited(self, seconds: float) -> None:
        """The oldest request of the batch that comes next has waited this long."""
        now, policy = self._clock(), self._policy
        self._nothing_waited_until(now - seconds)
        self._seen_s = now
        if seconds > policy.target_s:
            self._above_target_s = min(self._above_target_s, now)
        else:
            self._above_target_s, self._asked = math.inf, 0
        self._above_clear_s = (
            min(self._above_clear_s, now) if seconds > policy.clear_s else math.inf
        )
        if now - self._above_target_s >= policy.interval_s:
            self._lower(now, seconds)
        if now - self._above_clear_s >= policy.interval_s:
            self._calm_s = now
        elif seconds <= policy.clear_s and now - self._calm_s >= self._hold_s:
            self._raise(now, seconds)

    def capped(self, queries: Sequence[Query]) -> Sequence[Query]:
        """The queries as they are to be computed now: none costlier than asked, strict ones as is.

        What is lowered gets the ceiling, or stays where the query asked for less.
        """
        asked = max((self._step_of[q.effort] for q in queries if not q.effort_strict), default=0)
        self._asked = max(self._asked, asked)
        if asked <= self._step:
            return queries
        ceiling = self.steps[self._step]
        return [
            query
            if query.effort_strict or self._step_of[query.effort] <= self._step
            else replace(query, effort=ceiling)
            for query in queries
        ]

    def steps_down(self, oldest_wait_s: float) -> int:
        """How far the ceiling is lowered, 0 where it is not; what waits now has waited this long.

        Nobody tells of an empty queue, so this is also where idle time is noticed.
        """
        self._nothing_waited_until(self._clock() - oldest_wait_s)
        return len(self.steps) - 1 - self._step

    def _nothing_waited_until(self, until_s: float) -> None:
        """Take note of the time since the last batch, in which the queue was empty."""
        empty_s = until_s - self._seen_s
        if empty_s >= self._policy.interval_s:
            self._above_target_s = self._above_clear_s = math.inf
        if empty_s >= self._policy.hold_s:
            self._seen_s = until_s
            self._hold_s, self._trial_s = self._policy.hold_s, -math.inf
            self._move(len(self.steps) - 1, until_s, 0.0)

    def _lower(self, now: float, waited_s: float) -> None:
        # A step that nobody who waits would feel is skipped, and none is taken where all are such.
        step = min(self._step, self._asked) - 1
        self._above_target_s, self._asked = now, 0
        if step < 0:
            return
        if self._trial_s > -math.inf:
            undone = now - self._trial_s < self._hold_s
            longer_s = min(2 * self._hold_s, MAX_HOLDS * self._policy.hold_s)
            self._hold_s = longer_s if undone else self._policy.hold_s
        self._trial_s = -math.inf
        self._move(step, now, waited_s)

    def _raise(self, now: float, waited_s: float) -> None:
        if self._step == len(self.steps) - 1:
            return
        if self._trial_s > -math.inf:  # the last trial has lasted
            self._hold_s = self._policy.hold_s
        self._trial_s = now
        self._move(self._step + 1, now, waited_s)

    def _move(self, step: int, now: float, waited_s: float) -> None:
        was, self._step, self._calm_s = self._step, step, now
        if step == was:
            return
        fields = {
            "was": self.steps[was],
            "ceiling": self.steps[step],
            "waited_ms": round(waited_s * 1e3, 3),
        }
        if step < was:
            log.warning("effort ceiling lowered", extra={"fields": fields})
        else:
            log.info("effort ceiling raised", extra={"fields": fields})
