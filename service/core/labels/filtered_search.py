"""Searches under a filter, by the cheaper of two plans; both return k labels if k pass.

`exact` scores the rows that pass the filter and no others. `filtered` searches deeper than k and
drops the rows that do not pass; it goes deeper again until k are left. `exact` is cheap if few rows
pass, `filtered` if most do. Every filtered answer names its plan (docs/decisions/0021).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.core.labels.item_filter import NO_ROWS
from service.core.types import (
    FieldValue,
    FilterPlan,
    Float32Rows,
    Hits,
    Int64Rows,
    LabelFilter,
    no_hits,
)

SCANNED_PER_FOUND: Final = 1.0
"""Rows that can be scored in the time in which a search finds one more; measured for `pq-fastscan`
and `hnsw` in docs/decisions/0021."""

_SPARE: Final = 1.25
"""The first search is this much deeper than the expected depth. A choice: a fixed cost of a quarter
against a second search whenever fewer rows pass than expected."""
_WIDEN: Final = 4
"""Factor of depth from search to search. A choice: few searches for a rare filter, at the price of
at most four times the depth needed."""


class Directory(Protocol):
    """Finds rows by label ids and by metadata. Threads may share it."""

    def rows_of(self, label_ids: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
        """Rows of these labels, rising, and the unknown ids."""
        ...

    def rows_where(self, conditions: Mapping[str, tuple[FieldValue, ...]]) -> NDArray[np.int64]:
        """Rows, rising, of the labels whose metadata has one of the values in every field."""
        ...


class Searchable(Protocol):
    """The part of LabelIndex that filters need; a catalogue's Snapshot has it too."""

    @property
    def n_rows(self) -> int:
        """Number of labels that can be in an answer."""
        ...

    def search(self, queries: Float32Rows, k: int, effort: str) -> Hits:
        """Top k rows of each query (n, dim)."""
        ...

    def search_among(self, queries: Float32Rows, rows: NDArray[np.int64], k: int) -> Hits:
        """Top k of `rows` alone, which rise."""
        ...


@dataclass(frozen=True, slots=True)
class RowFilter:
    """A filter as rows, which rise: those in `allowed` (None: all) that are not in `denied`.

    `unknown` counts ids of the filter that name no label.
    """

    allowed: NDArray[np.int64] | None
    denied: NDArray[np.int64]
    unknown: int = 0

    def restrict_to_live(
        self, is_live: Callable[[NDArray[np.int64]], NDArray[np.bool_]]
    ) -> "RowFilter":
        """The filter without rows whose label is not live."""
        allowed = None if self.allowed is None else self.allowed[is_live(self.allowed)]
        return RowFilter(allowed, self.denied[is_live(self.denied)], self.unknown)

    def without(self, rows: NDArray[np.int64]) -> "RowFilter":
        """The filter with `rows`, which rise, denied as well."""
        if self.allowed is not None:
            return RowFilter(_difference(self.allowed, rows), NO_ROWS, self.unknown)
        return RowFilter(None, np.union1d(self.denied, rows), self.unknown)

    def within(self, other: "RowFilter") -> "RowFilter":
        """The rows that pass both filters; `unknown` stays this filter's."""
        allowed = self.allowed if other.allowed is None else other.allowed
        if self.allowed is not None and other.allowed is not None:
            allowed = np.intersect1d(self.allowed, other.allowed, True)
        denied = np.union1d(self.denied, other.denied)
        return RowFilter(allowed, NO_ROWS, self.unknown).without(denied)


def resolve_filter(label_filter: LabelFilter, directory: Directory) -> RowFilter:
    """Turn a filter's ids and metadata into rows; unknown ids match nothing and are counted."""
    denied, n_unknown = NO_ROWS, 0
    if label_filter.deny:
        denied, unknown_ids = directory.rows_of(label_filter.deny)
        n_unknown += len(unknown_ids)
    allowed: NDArray[np.int64] | None = None
    if label_filter.allow is not None:
        allowed, unknown_ids = directory.rows_of(label_filter.allow)
        n_unknown += len(unknown_ids)
    if label_filter.where:
        matches = directory.rows_where(label_filter.where)
        allowed = matches if allowed is None else np.intersect1d(allowed, matches, True)
    if allowed is not None:
        return RowFilter(_difference(allowed, denied), NO_ROWS, n_unknown)
    return RowFilter(None, denied, n_unknown)


def search_filtered(
    index: Searchable, queries: Float32Rows, k: int, effort: str, rows: RowFilter
) -> tuple[Hits, FilterPlan]:
    """Top k of the rows that pass a filter, or all of them if fewer pass; and the plan.

    An answer does not depend on the other queries (n, dim) of its batch.
    """
    n, allowed = index.n_rows, rows.allowed
    n_open = n - len(rows.denied) if allowed is None else len(allowed)
    kind = "filtered" if allowed is None else plan_kind(n, n_open, k)
    plan = FilterPlan(kind, n_open, n, rows.unknown)
    k = min(k, n_open)
    if k == 0:
        return no_hits(len(queries)), plan
    if allowed is not None and kind == "exact":
        return index.search_among(queries, allowed, k), plan
    return _widened(index, queries, k, effort, rows, n_open), plan


def plan_kind(n_rows: int, n_open: int, k: int) -> Literal["exact", "filtered"]:
    """The cheaper plan: to score `n_open` rows, or to search so deep that k open rows are found.

    >>> plan_kind(1_000_000, 500, 10), plan_kind(1_000_000, 500_000, 10)
    ('exact', 'filtered')
    """
    if n_open == 0:
        return "exact"
    depth = k * n_rows / n_open
    return "exact" if n_open <= SCANNED_PER_FOUND * depth else "filtered"


def _widened(
    index: Searchable, queries: Float32Rows, k: int, effort: str, rows: RowFilter, n_open: int
) -> Hits:
    """The plan `filtered`: search deeper until every query has k open rows."""
    best_rows = np.empty((len(queries), k), np.int64)
    best_scores = np.empty((len(queries), k), np.float32)
    pending = np.arange(len(queries))
    if rows.allowed is None and len(rows.denied) <= k:
        depth = k + len(rows.denied)  # k are left even if all denied rows are among them
    else:
        depth = math.ceil(_SPARE * k * index.n_rows / n_open)
    while len(pending):
        depth = min(depth, index.n_rows)
        hits = index.search(queries[pending], depth, effort)
        is_open = are_open(hits.rows, rows)
        ranks = np.cumsum(is_open, axis=1)
        # A search at full depth returns every open row, so the loop ends there.
        done = ranks[:, -1] >= k
        top = is_open & (ranks <= k) & done[:, None]
        best_rows[pending[done]] = hits.rows[top].reshape(-1, k)
        best_scores[pending[done]] = hits.scores[top].reshape(-1, k)
        pending = pending[~done]
        depth *= _WIDEN
    return Hits(best_rows, best_scores)


def are_open(candidates: NDArray[np.int64], rows: RowFilter) -> NDArray[np.bool_]:
    """Whether each candidate row passes a filter, in the shape of `candidates`."""
    if rows.allowed is None:
        return ~_is_in(candidates, rows.denied)
    return _is_in(candidates, rows.allowed)


def _is_in(candidates: Int64Rows, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each candidate is one of `rows`, which rise."""
    if len(rows) == 0:
        return np.zeros(candidates.shape, np.bool_)
    places = np.minimum(np.searchsorted(rows, candidates), len(rows) - 1)
    return np.asarray(rows[places] == candidates)


def _difference(rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows that are not in `others`; both rise."""
    return rows[~_is_in(rows, others)] if len(others) else rows
