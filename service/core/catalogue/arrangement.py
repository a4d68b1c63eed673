"""The last stage of an answer: the order that label rules and diversity give to scored candidates.

It comes after re-ranking and calibration, and before `k` and `min_score` cut the answer. Rules
first: a boost changes scores, pinned labels come first and buried ones last. Diversity orders what
is between, and sees the pinned labels as taken before.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.core.catalogue.label_vectors import label_vectors
from service.core.catalogue.snapshot import Snapshot
from service.core.diversity import diversify
from service.core.index.protocol import LabelIndex
from service.core.labels.moves import Moves
from service.core.types import Float32Rows, Hits, Int64Rows


@dataclass(frozen=True, slots=True)
class Arranged:
    """Hits in their final order, with raw scores, and the served `scores`, all (n, width).

    `unruled` are the served scores without boosts, `rules` the codes of the rules that moved each
    label (`service.core.labels.moves.RULES`); both are None where no rule moves labels.
    """

    hits: Hits
    scores: Float32Rows
    unruled: Float32Rows | None
    rules: NDArray[np.int8] | None


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How candidates are put in order: by the `moves` of label rules, and by `diversity`.

    `hidden` are rows that the answer leaves out later, so that they must not count. `k` is how many
    labels diversity puts in order.
    """

    index: LabelIndex
    snapshot: Snapshot | None
    moves: Moves | None
    diversity: float
    hidden: NDArray[np.int64] | None
    k: int

    def of(self, hits: Hits, scores: Float32Rows, kind: str) -> Arranged:
        """Arrange the hits of n queries; `kind` says what their served `scores` mean."""
        rows, moves, unruled = hits.rows, self.moves, scores
        if moves is not None:
            scores = moves.boost(rows, scores, kind)
        order = self._order(rows, scores)
        rules = None if moves is None else moves.codes(rows)
        return Arranged(
            Hits(np.take_along_axis(rows, order, 1), np.take_along_axis(hits.scores, order, 1)),
            np.take_along_axis(scores, order, 1),
            None if rules is None else np.take_along_axis(unruled, order, 1),
            None if rules is None else np.take_along_axis(rules, order, 1),
        )

    def _order(self, rows: Int64Rows, scores: Float32Rows) -> Int64Rows:
        tiers = np.zeros(rows.shape, np.int64) if self.moves is None else self.moves.tiers(rows)
        if self.hidden is not None and len(self.hidden):
            tiers = np.where(np.isin(rows, self.hidden), np.iinfo(np.int64).max - 1, tiers)
        if not self.diversity:
            return np.lexsort((-scores, tiers), axis=1)
        vectors = label_vectors(self.index, self.snapshot, rows)
        return diversify(scores, tiers, vectors, self.diversity, self.k)
