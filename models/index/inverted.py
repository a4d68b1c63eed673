"""Inverted lists: clusters of labels; a search visits the lists with the nearest centres.

`ivf-flat` stores fp16 vectors in the lists. `ivf-pq` stores 4-bit codes of the difference between a
label and its list's centre, and scores the best few labels again exactly. Centres are means of
centred vectors, scaled to unit norm. A search compares all centres, or in `ivf-pq` with many
centres, first their 4-bit codes. A graph over the centres was slower (docs/decisions/0012).
"""

from math import isqrt
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from models.config import IndexConfig
from models.index.kind import FaissKind
from models.index.quantised import CODES, four_bit_codes
from models.index.storage import (
    at_least,
    centred,
    code_width,
    half_precision,
    rescored,
    write_index,
    write_rescored,
)

_ROUNDS = 8
"""Rounds of k-means. A choice: lists only group labels, so rough clusters are enough."""
_CANDIDATES = 16
"""Number of nearest centres that can be a label's second list (docs/decisions/0012)."""
_ROWS_AT_ONCE = 4096
_POINTS_PER_LIST = 64
"""Vectors for each centre in k-means. A choice, as for mining (docs/decisions/0008)."""
_SCANNED_CENTRES = 1024
"""Above this number of centres, a search compares their codes first (docs/decisions/0012)."""
_CENTRE_CODE_DIMS = 2
"""Dimensions of a code of a centre, as in `pq-fastscan` by default."""
_CENTRES_RESCORED = 2.0
"""Centres that a search compares exactly, for each list that it visits (docs/decisions/0012)."""


class IvfFlat(FaissKind):
    """`index.kind = "ivf-flat"`."""

    name = "ivf-flat"
    settings = ("ivf_lists",)

    def _write(self, vectors: NDArray[np.float32], config: IndexConfig, path: Path) -> None:
        """Cluster the centred vectors (n, dim), put the raw ones into the lists, and write them."""
        n_lists = list_count(config, len(vectors))
        centres, assigned = _clusters(centred(vectors), n_lists)
        coarse = half_precision(centres)
        lists = faiss.IndexIVFScalarQuantizer(
            coarse,
            vectors.shape[1],
            n_lists,
            faiss.ScalarQuantizer.QT_fp16,
            faiss.METRIC_INNER_PRODUCT,
            False,  # no residuals: the lists hold the vectors themselves
        )
        lists.own_fields = False
        lists.is_trained = True
        # Not add(), which would search for the nearest centres again.
        columns = (np.ascontiguousarray(vectors), np.arange(len(vectors)), assigned)
        lists.add_core(len(vectors), *map(faiss.swig_ptr, columns))
        write_index(lists, path)

    def grid(self, config: IndexConfig, n_labels: int) -> list[dict[str, int]]:
        """Numbers of lists to visit, smallest first."""
        return [{"nprobe": n} for n in _visits(list_count(config, n_labels))]


class IvfPq(FaissKind):
    """`index.kind = "ivf-pq"`."""

    name = "ivf-pq"
    settings = ("ivf_lists", "ivf_copies", "pq_dims")

    def _write(self, vectors: NDArray[np.float32], config: IndexConfig, path: Path) -> None:
        """Cluster and encode the centred vectors (n, dim), and write them with the raw ones."""
        rows = centred(vectors)
        n_lists = list_count(config, len(rows))
        centres, assigned = _clusters(rows, n_lists)
        rows /= _length_along(rows, centres[assigned])
        assigned = assigned[:, None]
        if config.ivf_copies == 2 and n_lists > 1:
            assigned = np.hstack([assigned, _second_lists(rows, centres)])
        lists = _coded(rows, centres, assigned, config.pq_dims)
        scanned = coarse = half_precision(centres)
        if n_lists > _SCANNED_CENTRES:
            codes = four_bit_codes(centres, _CENTRE_CODE_DIMS)
            coarse = rescored(codes, scanned)
            coarse.k_factor = _CENTRES_RESCORED
        lists.quantizer = coarse
        write_rescored(lists, vectors, path)

    def grid(self, config: IndexConfig, n_labels: int) -> list[dict[str, int]]:
        """Pairs of lists to visit and candidates to score again, by their cost."""
        n_lists = list_count(config, n_labels)
        pairs = [
            {"nprobe": visited, "rescored": 40 << doubling}
            for visited in _visits(n_lists)
            for doubling in range(5)
        ]
        per_list = _LIST_NS + _CODE_NS * config.ivf_copies * n_labels / n_lists
        return sorted(
            pairs, key=lambda pair: per_list * pair["nprobe"] + _RESCORE_NS * pair["rescored"]
        )


_LIST_NS, _CODE_NS, _RESCORE_NS = 300.0, 2.0, 250.0
"""Nanoseconds of a visit to a list, of a code in it, and of scoring a candidate again.

Forty candidates took about 10 us (docs/decisions/0012). The figures only order the grid."""


def _length_along(rows: NDArray[np.float32], centres: NDArray[np.float32]) -> np.float32:
    """The mean length of the rows along their centres, which have unit norm.

    After a division by it, rows lie around their centres, so residuals are small and codes precise.
    All scores of a query change by the same factor, so rankings stay.
    """
    along = np.einsum("nd,nd->n", rows, centres).mean()
    return np.maximum(along, np.finfo(np.float32).tiny)


def _coded(
    rows: NDArray[np.float32],
    centres: NDArray[np.float32],
    assigned: NDArray[np.int64],
    width: int,
) -> faiss.IndexIVFPQFastScan:
    """Lists of the rows' codes, still without an index over the centres.

    `rows` (n, dim); `assigned` (n, copies) are the lists of each row.
    """
    dim, n_lists = rows.shape[1], len(centres)
    nearest = faiss.IndexFlatIP(dim)
    nearest.add(centres)
    lists = faiss.IndexIVFPQ(
        nearest, dim, n_lists, dim // code_width(dim, width), 4, faiss.METRIC_INNER_PRODUCT
    )
    lists.own_fields = False
    lists.pq.cp.min_points_per_centroid = 1
    stride = -(-len(rows) // (1 << 16))
    lists.train(at_least(rows[::stride], CODES))
    numbers = np.arange(len(rows))
    # Not add(), which would search for the nearest centres again.
    for places in np.ascontiguousarray(assigned.T):
        lists.add_core(len(rows), *map(faiss.swig_ptr, (rows, numbers, places)))
    packed = faiss.IndexIVFPQFastScan(lists)
    packed.own_fields = False
    packed.ntotal = len(rows)  # rows, not entries: a row can be in two lists
    return packed


def list_count(config: IndexConfig, n_labels: int) -> int:
    """The number of lists; by default twice the square root of the label count, a choice.

    Twice as many took longer at 100,000 labels (docs/decisions/0012).
    """
    return min(config.ivf_lists or 2 * isqrt(n_labels), n_labels)


def _visits(n_lists: int) -> list[int]:
    """Numbers of lists to visit; each is about a fifth more than the one before."""
    steps = (1.2**step for step in range(128))
    return sorted({round(step) for step in steps if step < n_lists} | {n_lists})


def _clusters(
    rows: NDArray[np.float32], n_lists: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Centres of unit norm (n_lists, dim) by k-means, and the nearest centre (n,) of each row."""
    kmeans = faiss.Kmeans(
        rows.shape[1],
        n_lists,
        niter=_ROUNDS,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=_POINTS_PER_LIST,
        seed=1,
    )
    kmeans.train(rows)
    nearest = faiss.IndexFlatIP(rows.shape[1])
    nearest.add(kmeans.centroids)
    return kmeans.centroids, nearest.search(rows, 1)[1][:, 0]


def _second_lists(rows: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """A second list (n, 1) for each row (n, dim), for queries that miss the first; after SOAR.

    A search misses the first list if the query differs from the label along the label's residual,
    which is the label minus that list's centre. A second centre with a residual in the same
    direction would be missed for the same reason. So the second list has a centre that is near, but
    whose residual points elsewhere (arXiv 2404.00774). Centres have unit norm.
    """
    nearest = faiss.IndexFlatIP(rows.shape[1])
    nearest.add(centres)
    second = np.empty((len(rows), 1), np.int64)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        part = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
        cosines, candidates = nearest.search(part, min(_CANDIDATES, len(centres)))
        best = _cost(part, cosines, centres[candidates])[:, 1:].argmin(axis=1) + 1
        second[start : start + len(part), 0] = candidates[np.arange(len(part)), best]
    return second


def _cost(
    rows: NDArray[np.float32], cosines: NDArray[np.float32], centres: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The squared residual of each row at each of its `centres` (n, candidates, dim).

    The part along the residual of the first centre counts twice. The result is (n, candidates).
    """
    first = rows - cosines[:, :1] * centres[:, 0]
    first /= np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-12)
    along = np.einsum("nd,nd->n", first, rows)[:, None]
    along = along - cosines * np.matmul(centres, first[:, :, None])[:, :, 0]
    return np.asarray(1 - cosines**2 + along**2)
