"""Snapshot: one immutable state of a changed catalogue. A batch uses one from start to end.

Rows below `n_base` are the bundle's, the others the delta's. A *tombstone* is a row of the bundle
whose label was removed or has a new text. An *override* is the label of a bundle's row with new
metadata.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.core.catalogue.delta import Delta
from service.core.index.protocol import LabelIndex, check_queries
from service.core.labels.labels import Label, LabelStore
from service.core.types import Float32Rows, Hits, no_hits


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One state of the catalogue.

    `tombstones` rise. `overrides` maps a row to its label. `added` holds the labels of the rows
    `n_base`, `n_base + 1` and so on.
    """

    base: LabelIndex
    labels: LabelStore
    n_base: int
    tombstones: NDArray[np.int64]
    overrides: Mapping[int, Label]
    added: Sequence[Label]
    delta: Delta

    @property
    def n_rows(self) -> int:
        """Number of live labels, under the name that LabelIndex uses."""
        return self.n_live

    @property
    def n_live(self) -> int:
        """Number of live labels."""
        return self.n_base - len(self.tombstones) + self.delta.n_alive

    def label(self, row: int) -> Label:
        """The label of a row, even if it is no longer live."""
        if row >= self.n_base:
            return self.added[row - self.n_base]
        return self.overrides.get(row) or self.labels[row]

    def live_rows(self) -> NDArray[np.int64]:
        """Rows (n_live,) of all live labels, rising."""
        of_base = np.setdiff1d(np.arange(self.n_base), self.tombstones, assume_unique=True)
        return np.concatenate([of_base, self.delta.rows[self.delta.alive]])

    def lives(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the label of each row (n,) is live."""
        return np.where(rows < self.n_base, ~self._are_tombstones(rows), self.delta.lives(rows))

    def search(self, queries: Float32Rows, k: int, effort: str) -> Hits:
        """Top k live rows of each query (n, dim), as LabelIndex.search.

        If a bundle's row and a row of the delta have the same score, the lower row goes first.
        """
        check_queries(queries, self.base.dim, k)
        k = min(k, self.n_live)
        if len(queries) == 0 or k == 0:
            return Hits(
                np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
            )
        parts = []
        if (of_base := min(k, self.n_base - len(self.tombstones))) > 0:
            parts.append(self._search_base(queries, of_base, effort))
        if (of_delta := min(k, self.delta.n_alive)) > 0:
            parts.append(self.delta.search(queries, of_delta))
        return parts[0] if len(parts) == 1 else merge(parts, k)

    def search_among(self, queries: Float32Rows, rows: NDArray[np.int64], k: int) -> Hits:
        """Top k of the live ones of `rows`, which rise."""
        check_queries(queries, self.base.dim, k)
        rows = rows[self.lives(rows)]
        k = min(k, len(rows))
        border = int(rows.searchsorted(self.n_base))
        parts = []
        if border > 0:
            parts.append(self.base.search_among(queries, rows[:border], min(k, border)))
        if border < len(rows):
            delta = self.delta.only(rows[border:])
            parts.append(delta.search(queries, min(k, delta.n_alive)))
        if not parts:
            return no_hits(len(queries))
        return parts[0] if len(parts) == 1 else merge(parts, k)

    def _search_base(self, queries: Float32Rows, k: int, effort: str) -> Hits:
        """Top k rows of the bundle that are no tombstones.

        It searches again, twice as deep, for queries with fewer than k of them.
        """
        hits = self.base.search(queries, k, effort)
        if len(self.tombstones) == 0:
            return hits
        rows, scores = hits.rows.copy(), hits.scores.copy()
        pending, depth = np.arange(len(queries)), k
        while True:
            live = ~self._are_tombstones(hits.rows)
            enough = live.sum(axis=1) >= k
            # A stable sort moves the live rows to the front and keeps their order.
            places = np.argsort(~live[enough], axis=1, kind="stable")[:, :k]
            done = pending[enough]
            rows[done] = np.take_along_axis(hits.rows[enough], places, 1)
            scores[done] = np.take_along_axis(hits.scores[enough], places, 1)
            pending = pending[~enough]
            if len(pending) == 0:
                return Hits(rows, scores)
            depth = min(2 * depth, self.n_base)
            hits = self.base.search(queries[pending], depth, effort)

    def _are_tombstones(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        dead = self.tombstones
        if len(dead) == 0:
            return np.zeros(rows.shape, np.bool_)
        places = np.minimum(dead.searchsorted(rows), len(dead) - 1)
        return np.asarray(dead[places] == rows)


def merge(parts: Sequence[Hits], k: int) -> Hits:
    """Top k of several hits for the same queries, whose rows differ; ties go by row.

    >>> one = Hits(np.array([[4, 7]]), np.float32([[0.9, 0.5]]))
    >>> two = Hits(np.array([[2, 9]]), np.float32([[0.9, 0.6]]))
    >>> merge([one, two], 3).rows
    array([[2, 4, 9]])
    """
    rows = np.concatenate([part.rows for part in parts], axis=1)
    scores = np.concatenate([part.scores for part in parts], axis=1)
    best = np.lexsort((rows, -scores), axis=1)[:, :k]
    return Hits(np.take_along_axis(rows, best, 1), np.take_along_axis(scores, best, 1))
