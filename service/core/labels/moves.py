"""Moves: what label rules do to the order of an answer: boost, pin and bury.

They come after re-ranking and calibration. A boost adds to a label's score, in logits where scores
are probabilities, so a caller's `min_score` sees the boosted score. A pinned label comes first and
a buried one last; both keep the score of their relevance.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from service.core.labels.filtered_search import RowFilter, Searchable, are_open
from service.core.types import Float32Rows, Hits, Int64Rows

Rule = Literal["boost", "bury", "pin"]
RULES: Final[tuple[Rule | None, ...]] = (None, "boost", "bury", "pin")
"""The rule of each code in `Moves.codes`."""
MOVED_DEPTH: Final = 100
"""Candidates that boosts and burials move, or k if that is more. A choice, as for diversity."""
_LEAST_PROBABILITY: Final = 1e-7
"""As in `service.core.calibration`: a probability's logit stays finite."""


@dataclass(frozen=True, slots=True)
class Moves:
    """Rows of labels: `pinned` (p,) with rising `pin_tiers` (p,), `buried` and `boosted` rise.

    `by` (c,) is what the rows `boosted` (c,) gain.
    """

    pinned: NDArray[np.int64]
    pin_tiers: NDArray[np.int64]
    buried: NDArray[np.int64]
    boosted: NDArray[np.int64]
    by: NDArray[np.float64]

    def with_pinned(
        self, hits: Hits, index: Searchable, vectors: Float32Rows, passing: RowFilter | None
    ) -> Hits:
        """The hits (n, m) of queries (n, dim) with all pinned labels that pass among them.

        They take the places of the last ones. m is not below the number of pinned labels, unless
        all labels that pass are hits.
        """
        rows = np.sort(self.pinned)
        rows = rows if passing is None else rows[are_open(rows, passing)]
        if len(rows) == 0 or hits.rows.size == 0:
            return hits
        pins = index.search_among(vectors, rows, len(rows))
        repeats = np.isin(hits.rows, pins.rows)
        last = np.concatenate([np.zeros(pins.rows.shape, np.bool_), repeats], axis=1)
        kept = np.argsort(last, axis=1, kind="stable")[:, : hits.rows.shape[1]]
        all_rows = np.take_along_axis(np.concatenate([pins.rows, hits.rows], axis=1), kept, 1)
        scores = np.take_along_axis(np.concatenate([pins.scores, hits.scores], axis=1), kept, 1)
        order = np.argsort(-scores, axis=1, kind="stable")
        return Hits(np.take_along_axis(all_rows, order, 1), np.take_along_axis(scores, order, 1))

    def boost(self, rows: Int64Rows, scores: Float32Rows, kind: str) -> Float32Rows:
        """The scores (n, m) of `rows` with what rules add; `kind` says what a score means."""
        gains = self._gains(rows)
        if not gains.any():
            return scores
        if kind != "probability":
            return (scores + gains).astype(np.float32)
        likely = np.clip(scores.astype(np.float64), _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
        logits = np.log(likely) - np.log1p(-likely) + gains
        return np.where(gains == 0, scores, 1 / (1 + np.exp(-logits))).astype(np.float32)

    def tiers(self, rows: Int64Rows) -> Int64Rows:
        """Of each row (n, m) its place in the order of rules: pinned, all others, buried."""
        middle = int(self.pin_tiers[-1]) + 1 if len(self.pinned) else 0
        tiers = np.where(np.isin(rows, self.buried), middle + 1, middle)
        for row, tier in zip(self.pinned.tolist(), self.pin_tiers.tolist(), strict=True):
            tiers[rows == row] = tier
        return tiers

    def codes(self, rows: Int64Rows) -> NDArray[np.int8]:
        """Of each row (n, m) the rule that moved it, as its place in `RULES`; pin goes first."""
        codes = np.zeros(rows.shape, np.int8)
        codes[self._gains(rows) != 0] = RULES.index("boost")
        codes[np.isin(rows, self.buried)] = RULES.index("bury")
        codes[np.isin(rows, self.pinned)] = RULES.index("pin")
        return codes

    def _gains(self, rows: Int64Rows) -> NDArray[np.float64]:
        if len(self.boosted) == 0:
            return np.zeros(rows.shape)
        places = np.minimum(self.boosted.searchsorted(rows), len(self.boosted) - 1)
        return np.where(self.boosted[places] == rows, self.by[places], 0.0)
