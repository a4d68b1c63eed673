"""A goal for an index: its constraints, by how much a measurement misses them, and which is better.

These are pure functions of measurements.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from models.tune.candidate import Measurement
from service.bundle.manifest import GoalInfo

P99_MARGIN: Final = 0.15
"""A chosen point's p99 times 1.15 is within the limit, because times vary between runs. Three
tunings found 71 to 75 us, and fresh processes 74 to 85 us for what these chose
(docs/decisions/0016)."""
SAME_TIME: Final = 0.1
"""Times within a step of a tenth count as equal: such differences are noise (docs/decisions/0016).
"""
OWN_SCORES_MAX_LOSS: Final = 1.0
"""Points of P@1 that a kind with its own scores may lose, where the goal sets no limit. A choice:
its recall compares with its own scores, so only P@1 shows that they are worse."""
_LEAST_MISS: Final = 1e-3
"""Lower bound of the share of missed neighbours, because a goal of recall 1 would divide by zero. A
choice."""


@dataclass(frozen=True, slots=True)
class Miss:
    """One constraint that a measurement breaks.

    `what` names the constraint, `words` say by how much it is broken. `distance` (>= 0) is the
    natural logarithm of measured over allowed; for P@1 it is the points over the limit.
    """

    what: str
    words: str
    distance: float


@dataclass(frozen=True, slots=True)
class Goal:
    """The constraints on an index; None sets no limit.

    `p99_us` is in microseconds, `recall` a share, `p_at_1_loss` in points of P@1, and `memory_mb`
    in MB of index files.
    """

    p99_us: float | None = None
    recall: float | None = None
    p_at_1_loss: float | None = None
    memory_mb: float | None = None

    def __str__(self) -> str:
        said = []
        if self.p99_us is not None:
            said.append(f"p99 <= {self.p99_us:g} us")
        if self.recall is not None:
            said.append(f"recall@10 >= {self.recall:g}")
        if self.p_at_1_loss is not None:
            said.append(f"P@1 loss <= {self.p_at_1_loss:g} points")
        if self.memory_mb is not None:
            said.append(f"index <= {self.memory_mb:g} MB")
        return ", ".join(said) or "no constraint"

    @classmethod
    def of(cls, sealed: GoalInfo | None) -> Self:
        """The goal in a manifest; without constraints where the bundle was not tuned."""
        if sealed is None:
            return cls()
        return cls(sealed.p99_us, sealed.recall_at_10, sealed.p_at_1_loss, sealed.index_mb)

    def sealed(self) -> GoalInfo:
        """The form in which the manifest holds this goal."""
        return GoalInfo(
            p99_us=self.p99_us,
            recall_at_10=self.recall,
            p_at_1_loss=self.p_at_1_loss,
            index_mb=self.memory_mb,
        )

    def misses(self, found: Measurement, *, safely: bool) -> list[Miss]:
        """The constraints that a measurement breaks, with the margins if `safely`."""
        broken = [
            self._p99(found, safely),
            self._recall(found, safely),
            self._loss(found),
            self._memory(found),
        ]
        return [miss for miss in broken if miss is not None]

    def distance(self, found: Measurement, *, safely: bool = True) -> float:
        """Sum of the distances of all broken constraints, with margins if `safely`; 0 for none."""
        return sum(miss.distance for miss in self.misses(found, safely=safely))

    def cost(self, found: Measurement) -> tuple[float, ...]:
        """A sort key for measurements that meet the goal: the lower one is better.

        If the goal limits quality (recall or P@1 loss), the faster is better; of two that are
        equally fast to within `SAME_TIME`, the one with the higher recall. Else the one with the
        higher recall is better.
        """
        p99, good = found.timing.p99, -found.recall
        if self.recall is None and self.p_at_1_loss is None:
            return good, p99, found.index_bytes
        step = math.floor(math.log(max(p99, 1e-3)) / math.log(1 + SAME_TIME))
        return step, good, p99, found.index_bytes

    def _p99(self, found: Measurement, safely: bool) -> Miss | None:
        if self.p99_us is None:
            return None
        limit = self.p99_us / (1 + P99_MARGIN) if safely else self.p99_us
        p99 = found.timing.p99
        if p99 <= limit:
            return None
        margin = f" ({limit:.0f} with the margin of {P99_MARGIN:.0%})" if safely else ""
        words = f"p99 is {p99:.0f} us, {p99 - limit:.0f} us over {self.p99_us:g}{margin}"
        return Miss("p99", words, math.log(p99 / limit))

    def _recall(self, found: Measurement, safely: bool) -> Miss | None:
        if self.recall is None:
            return None
        recall = found.sure_recall if safely else found.recall
        if recall >= self.recall:
            return None
        margin = f" ({recall:.4f} less two standard errors)" if safely else ""
        words = (
            f"recall@10 is {found.recall:.4f}{margin}, {self.recall - recall:.4f} under "
            f"{self.recall:g}"
        )
        missed = max(1 - self.recall, _LEAST_MISS)
        # Without the second term a miss within _LEAST_MISS of recall 1 would have the distance 0.
        distance = math.log(max((1 - recall) / missed, 1.0)) + (self.recall - recall)
        return Miss("recall", words, distance)

    def _loss(self, found: Measurement) -> Miss | None:
        limit = self.p_at_1_loss
        if limit is None and found.own_scores:
            limit = OWN_SCORES_MAX_LOSS
        if limit is None or found.p_at_1_loss <= limit:
            return None
        over = found.p_at_1_loss - limit
        error = "" if (e := found.p_at_1_loss_error) is None else f" (standard error {e:.2f})"
        words = f"P@1 loses {found.p_at_1_loss:.2f} points{error}, {over:.2f} more than {limit:g}"
        return Miss("P@1", words, over)

    def _memory(self, found: Measurement) -> Miss | None:
        if self.memory_mb is None:
            return None
        size = found.index_bytes / 1e6
        if size <= self.memory_mb:
            return None
        words = f"the index has {size:.1f} MB, {size - self.memory_mb:.1f} over {self.memory_mb:g}"
        return Miss("memory", words, math.log(size / self.memory_mb))


def choose(goal: Goal, found: Sequence[Measurement]) -> list[Measurement]:
    """The measurements that meet the goal with its margins, the best first."""
    holding = [each for each in found if not goal.misses(each, safely=True)]
    return sorted(holding, key=goal.cost)


def nearest(goal: Goal, found: Sequence[Measurement]) -> str:
    """A sentence about the measurement that misses the goal by least."""
    best = min(found, key=goal.distance)
    missed = "; ".join(miss.words for miss in goal.misses(best, safely=True))
    return (
        f"no index holds {goal}: the nearest, {best.candidate}, misses it on {best.n_queries:,} "
        f"validation queries: {missed}"
    )
