"""The delta index: the vectors of added labels. Searches score them exactly while it grows.

A reader holds a `Delta`: a fixed part of the arrays, with its own copy of which rows are live. The
writer appends after that part, so readers need no lock. It copies the arrays only if they are full
(and doubles them) or if most of their rows are dead.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from service.core.types import Float32Rows, Hits

_COPIED_AT_ONCE: Final = 4096
"""Rows copied in one call of numpy, during which no other thread runs: 6 MB at 384 dimensions."""

ToScore = Callable[[Float32Rows], Float32Rows]
_FIRST_CAPACITY: Final = 64
"""A choice: small, since most catalogues add no label; the arrays double when full."""
_DEAD_BEFORE_COPY: Final = 1024
"""Dead rows that are always tolerated. A choice: a scan of so many costs little, copies more."""


@dataclass(frozen=True, slots=True)
class Delta:
    """The part of the delta that one snapshot sees.

    `vectors` (n, dim) have the row numbers `rows` (n,), which rise; `alive` (n,) marks the live
    ones. `to_score` maps inner products to scores and is monotone; None keeps the products.
    `selector` reads `bits`, the packed marks, which it does not own.
    """

    vectors: Float32Rows
    rows: NDArray[np.int64]
    alive: NDArray[np.bool_]
    n_alive: int
    bits: NDArray[np.uint8]
    selector: faiss.IDSelector
    to_score: ToScore | None

    def search(self, queries: Float32Rows, k: int) -> Hits:
        """Exact top k of each query (n, dim), on one thread; k must not exceed `n_alive`."""
        faiss.omp_set_num_threads(1)  # holds for this thread; lanes are the parallelism
        queries = np.ascontiguousarray(queries, np.float32)
        scores = np.empty((len(queries), k), np.float32)
        places = np.empty((len(queries), k), np.int64)
        # With a selector FAISS computes query by query, so answers do not depend on the batch.
        faiss.swigfaiss.knn_inner_product(
            faiss.swig_ptr(queries),
            faiss.swig_ptr(self.vectors),
            self.vectors.shape[1],
            len(queries),
            len(self.vectors),
            k,
            faiss.swig_ptr(scores),
            faiss.swig_ptr(places),
            self.selector,
        )
        return Hits(self.rows[places], scores if self.to_score is None else self.to_score(scores))

    def only(self, rows: NDArray[np.int64]) -> "Delta":
        """The same delta with only `rows` live; they must be live now."""
        alive = np.zeros(len(self.rows), np.bool_)
        alive[self.rows.searchsorted(rows)] = True
        return replace(self, alive=alive, n_alive=len(rows), **_selector_of(alive))

    def vectors_of(self, rows: NDArray[np.int64]) -> Float32Rows:
        """The vectors (n, dim) of rows; zeros for one that the delta no longer holds."""
        vectors = np.zeros((len(rows), self.vectors.shape[1]), np.float32)
        places = self.rows.searchsorted(rows)
        held = places < len(self.rows)
        held[held] = self.rows[places[held]] == rows[held]
        vectors[held] = self.vectors[places[held]]
        return vectors

    def lives(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each row (n,) is in the delta and live."""
        places = np.minimum(self.rows.searchsorted(rows), max(len(self.rows) - 1, 0))
        if len(self.rows) == 0:
            return np.zeros(len(rows), np.bool_)
        return np.asarray((self.rows[places] == rows) & self.alive[places])


class DeltaRows:
    """The writer's side of the delta, for one thread at a time. It never reuses a row number."""

    def __init__(self, dim: int, first_row: int) -> None:
        self._vectors = np.empty((_FIRST_CAPACITY, dim), np.float32)
        self._rows = np.empty(_FIRST_CAPACITY, np.int64)
        self._alive = np.zeros(_FIRST_CAPACITY, np.bool_)
        self._count = 0
        self._next_row = first_row

    def append(self, vectors: Float32Rows) -> int:
        """Add vectors (n, dim) under n successive row numbers; returns the first."""
        first, start, end = self._next_row, self._count, self._count + len(vectors)
        if end > len(self._rows):
            self._move(np.arange(start), max(2 * len(self._rows), end))
        self._vectors[start:end] = vectors
        self._rows[start:end] = np.arange(first, first + len(vectors))
        self._alive[start:end] = True
        self._count, self._next_row = end, first + len(vectors)
        return first

    def kill(self, row: int) -> None:
        """Mark a row dead in all later views."""
        self._alive[self._place(row)] = False

    def vector(self, row: int) -> NDArray[np.float32]:
        """The vector (dim,) of a live row."""
        return np.asarray(self._vectors[self._place(row)])

    def view(self, to_score: ToScore | None) -> Delta:
        """The present state for readers; `to_score` is None if inner products are the scores."""
        alive = self._alive[: self._count].copy()
        n_alive = int(alive.sum())
        if self._count - n_alive > max(n_alive, _DEAD_BEFORE_COPY):
            self._move(np.flatnonzero(alive), max(2 * n_alive, _FIRST_CAPACITY))
            alive = np.ones(n_alive, np.bool_)
        count = self._count
        return Delta(
            vectors=self._vectors[:count],
            rows=self._rows[:count],
            alive=alive,
            n_alive=n_alive,
            **_selector_of(alive),
            to_score=to_score,
        )

    def _place(self, row: int) -> int:
        return int(self._rows[: self._count].searchsorted(row))

    def _move(self, places: NDArray[np.int64], capacity: int) -> None:
        """Copy the entries at `places` into new arrays; readers keep the old arrays."""
        for name in ("_vectors", "_rows", "_alive"):
            old = getattr(self, name)
            new = np.zeros((capacity, *old.shape[1:]), old.dtype)
            for start in range(0, len(places), _COPIED_AT_ONCE):
                part = places[start : start + _COPIED_AT_ONCE]
                new[start : start + len(part)] = old[part]
            setattr(self, name, new)
        self._count = len(places)


def _selector_of(alive: NDArray[np.bool_]) -> dict[str, Any]:
    """A FAISS selector of the live rows, and the bits that it reads but does not own."""
    bits = np.packbits(alive, bitorder="little")
    selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits)) if len(bits) else None
    return {"bits": bits, "selector": selector}
