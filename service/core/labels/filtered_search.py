"""Search under a filter: which rows may answer, and the cheaper of two right ways to find them.

`exact` scores the allowed rows and no others; `filtered` searches as always, deeper, and drops what
is not allowed, deeper still until k are left. The first is cheap where few rows are allowed, the
second where most are. Every filtered answer says which plan made it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.core.labels.item_filter import NO_ROWS
from service.core.types import FieldValue, FilterPlan, Float32Rows, Hits, Int64Rows, LabelFilter

SCANNED_PER_FOUND: Final = 1.0
"""Rows that can be scored in the time in which a search finds one more (docs/decisions/0021)."""

_SPARE: Final = 1.25
_WIDEN: Final = 4


class Directory(Protocol):
    """Finds rows by what users know: label ids and metadata. Safe to share by threads."""

    def rows_of(self, label_ids: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
        """Rising rows of these labels, and the ids that are not known."""
        ...

    def rows_where(self, conditions: Mapping[str, tuple[FieldValue, ...]]) -> NDArray[np.int64]:
        """Rising rows of the labels whose metadata has one of the values in every field."""
        ...


class Searchable(Protocol):
    """What of a LabelIndex is needed here; also one state of a changed catalogue."""

    @property
    def n_rows(self) -> int:
        """Labels that can be answers."""
        ...

    def search(self, queries: Float32Rows, k: int, effort: str) -> Hits:
        """Top k of each query."""
        ...

    def search_among(self, queries: Float32Rows, rows: NDArray[np.int64], k: int) -> Hits:
        """Top k of `rows` alone."""
        ...


@dataclass(frozen=True, slots=True)
class RowFilter:
    """A filter in rows, rising: only `allowed` ones (None: all) and none of `denied`."""

    allowed: NDArray[np.int64] | None
    denied: NDArray[np.int64]
    unknown: int = 0

    def among(self, lives: Callable[[NDArray[np.int64]], NDArray[np.bool_]]) -> "RowFilter":
        """The same, without rows that no longer live, or not yet."""
        allowed = None if self.allowed is None else self.allowed[lives(self.allowed)]
        return RowFilter(allowed, self.denied[lives(self.denied)], self.unknown)

    def without(self, rows: NDArray[np.int64]) -> "RowFilter":
        """The same, with more rows denied."""
        if self.allowed is not None:
            return RowFilter(_less(self.allowed, rows), NO_ROWS, self.unknown)
        return RowFilter(None, np.union1d(self.denied, rows), self.unknown)

    def within(self, other: "RowFilter") -> "RowFilter":
        """What both let through; ids that are unknown are this one's."""
        allowed = self.allowed if other.allowed is None else other.allowed
        if self.allowed is not None and other.allowed is not None:
            allowed = np.intersect1d(self.allowed, other.allowed, True)
        denied = np.union1d(self.denied, other.denied)
        return RowFilter(allowed, NO_ROWS, self.unknown).without(denied)


def resolve_filter(wanted: LabelFilter, directory: Directory) -> RowFilter:
    """Ids and metadata as rows; ids that are not known match nothing and are counted."""
    denied, strangers = directory.rows_of(wanted.deny) if wanted.deny else (NO_ROWS, [])
    unknown = len(strangers)
    allowed: NDArray[np.int64] | None = None
    if wanted.allow is not None:
        allowed, strangers = directory.rows_of(wanted.allow)
        unknown += len(strangers)
    if wanted.where:
        matching = directory.rows_where(wanted.where)
        allowed = matching if allowed is None else np.intersect1d(allowed, matching, True)
    if allowed is not None:
        return RowFilter(_less(allowed, denied), NO_ROWS, unknown)
    return RowFilter(None, denied, unknown)


def search_filtered(
    index: Searchable, queries: Float32Rows, k: int, effort: str, rows: RowFilter
) -> tuple[Hits, FilterPlan]:
    """Top k of the rows that a filter lets through, fewer where it lets fewer through.

    An answer does not depend on which queries share its batch.
    """
    n, allowed = index.n_rows, rows.allowed
    n_open = n - len(rows.denied) if allowed is None else len(allowed)
    kind = "filtered" if allowed is None else plan_kind(n, n_open, k)
    plan = FilterPlan(kind, n_open, n, rows.unknown)
    k = min(k, n_open)
    if k == 0:
        empty = (len(queries), 0)
        return Hits(np.empty(empty, np.int64), np.empty(empty, np.float32)), plan
    if allowed is not None and kind == "exact":
        return index.search_among(queries, allowed, k), plan
    return _widened(index, queries, k, effort, rows, n_open), plan


def plan_kind(n_rows: int, n_open: int, k: int) -> Literal["exact", "filtered"]:
    """The cheaper plan: scoring `n_open` rows, or finding as many as hold k that are open.

    >>> plan_kind(1_000_000, 500, 10), plan_kind(1_000_000, 500_000, 10)
    ('exact', 'filtered')
    """
    if n_open == 0:
        return "exact"
    to_find = k * n_rows / n_open
    return "exact" if n_open <= SCANNED_PER_FOUND * to_find else "filtered"


def _widened(
    index: Searchable, queries: Float32Rows, k: int, effort: str, rows: RowFilter, n_open: int
) -> Hits:
    found_rows = np.empty((len(queries), k), np.int64)
    found_scores = np.empty((len(queries), k), np.float32)
    left = np.arange(len(queries))
    if rows.allowed is None and len(rows.denied) <= k:
        depth = k + len(rows.denied)  # as many as can be dropped
    else:
        depth = math.ceil(_SPARE * k * index.n_rows / n_open)
    while len(left):
        depth = min(depth, index.n_rows)
        hits = index.search(queries[left], depth, effort)
        is_open = are_open(hits.rows, rows)
        ranks = np.cumsum(is_open, axis=1)
        # At full depth every open row has been found, so nobody is left over.
        done = ranks[:, -1] >= k
        kept = is_open & (ranks <= k) & done[:, None]
        found_rows[left[done]] = hits.rows[kept].reshape(-1, k)
        found_scores[left[done]] = hits.scores[kept].reshape(-1, k)
        left = left[~done]
        depth *= _WIDEN
    return Hits(found_rows, found_scores)


def are_open(found: NDArray[np.int64], rows: RowFilter) -> NDArray[np.bool_]:
    """Whether a filter lets each row through, in the shape of `found`."""
    if rows.allowed is None:
        return ~_among(found, rows.denied)
    return _among(found, rows.allowed)


def _among(found: Int64Rows, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of `found` are in `rows`, which rise."""
    if len(rows) == 0:
        return np.zeros(found.shape, np.bool_)
    places = np.minimum(np.searchsorted(rows, found), len(rows) - 1)
    return np.asarray(rows[places] == found)


def _less(rows: NDArray[np.int64], gone: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows[~_among(rows, gone)] if len(gone) else rows
