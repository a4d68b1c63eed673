"""The delta index: vectors of added labels, scored exactly, growing while it is searched.

A writer appends behind what readers see; they hold `Delta`, a fixed part of the same arrays with
its own marks of what lives. Arrays are copied only when they are full (doubled) or mostly dead.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from service.core.types import Float32Rows, Hits

ToScore = Callable[[Float32Rows], Float32Rows]
_FIRST: Final = 64
_DEAD_BEFORE_COPY: Final = 1024


@dataclass(frozen=True, slots=True)
class Delta:
    """What one snapshot sees: `vectors` (n, dim), the row of each, rising, and which live.

    `to_score` makes scores of inner products, monotone; None leaves them.
    """

    vectors: Float32Rows
    rows: NDArray[np.int64]
    alive: NDArray[np.bool_]
    n_alive: int
    bits: NDArray[np.uint8]
    selector: faiss.IDSelector
    to_score: ToScore | None

    def search(self, queries: Float32Rows, k: int) -> Hits:
        """The best k, at most `n_alive`, of each query (n, dim); exact, on one thread."""
        faiss.omp_set_num_threads(1)  # of this thread: lanes are the parallelism
        queries = np.ascontiguousarray(queries, np.float32)
        scores = np.empty((len(queries), k), np.float32)
        places = np.empty((len(queries), k), np.int64)
        # With a selector FAISS goes query by query, so that an answer is the same in any batch.
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
        """The same vectors with these rows for the living, all of which do live."""
        alive = np.zeros(len(self.rows), np.bool_)
        alive[self.rows.searchsorted(rows)] = True
        return replace(self, alive=alive, n_alive=len(rows), **_selected(alive))

    def lives(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each row (n,) is one of these and lives."""
        places = np.minimum(self.rows.searchsorted(rows), max(len(self.rows) - 1, 0))
        if len(self.rows) == 0:
            return np.zeros(len(rows), np.bool_)
        return np.asarray((self.rows[places] == rows) & self.alive[places])


class DeltaRows:
    """The writer's side; one thread at a time. A row number is given once and never again."""

    def __init__(self, dim: int, first_row: int) -> None:
        self._vectors = np.empty((_FIRST, dim), np.float32)
        self._rows = np.empty(_FIRST, np.int64)
        self._alive = np.zeros(_FIRST, np.bool_)
        self._count = 0
        self._next_row = first_row

    def append(self, vectors: Float32Rows) -> int:
        """Add vectors (n, dim); returns the row of the first, the others follow."""
        first, start, end = self._next_row, self._count, self._count + len(vectors)
        if end > len(self._rows):
            self._move(np.arange(start), max(2 * len(self._rows), end))
        self._vectors[start:end] = vectors
        self._rows[start:end] = np.arange(first, first + len(vectors))
        self._alive[start:end] = True
        self._count, self._next_row = end, first + len(vectors)
        return first

    def kill(self, row: int) -> None:
        """Take a row out of all later views."""
        self._alive[self._place(row)] = False

    def vector(self, row: int) -> NDArray[np.float32]:
        """The vector of a row that lives."""
        return np.asarray(self._vectors[self._place(row)])

    def view(self, to_score: ToScore | None) -> Delta:
        """What is there now, for readers; `to_score` is None where inner products are scores."""
        alive = self._alive[: self._count].copy()
        n_alive = int(alive.sum())
        if self._count - n_alive > max(n_alive, _DEAD_BEFORE_COPY):
            self._move(np.flatnonzero(alive), max(2 * n_alive, _FIRST))
            alive = np.ones(n_alive, np.bool_)
        count = self._count
        return Delta(
            vectors=self._vectors[:count],
            rows=self._rows[:count],
            alive=alive,
            n_alive=n_alive,
            **_selected(alive),
            to_score=to_score,
        )

    def _place(self, row: int) -> int:
        return int(self._rows[: self._count].searchsorted(row))

    def _move(self, kept: NDArray[np.int64], capacity: int) -> None:
        """Into new arrays: readers keep the old ones."""
        for name in ("_vectors", "_rows", "_alive"):
            old = getattr(self, name)
            new = np.zeros((capacity, *old.shape[1:]), old.dtype)
            new[: len(kept)] = old[kept]
            setattr(self, name, new)
        self._count = len(kept)


def _selected(alive: NDArray[np.bool_]) -> dict[str, Any]:
    """FAISS' selector of what lives, and the bytes that it reads and does not keep."""
    bits = np.packbits(alive, bitorder="little")
    selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits)) if len(bits) else None
    return {"bits": bits, "selector": selector}
