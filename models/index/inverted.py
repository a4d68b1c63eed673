"""Inverted lists: labels in clusters, of which a search visits the nearest few.

`ivf-flat` keeps fp16 vectors in the lists; `ivf-pq` 4-bit codes of how labels differ from their
list's centre, and scores the best few again exactly. The centres are of centred vectors, of unit
norm. They are scanned one after the other, but where `ivf-pq` has many of them, by codes of their
own; a graph over them was slower (docs/decisions/0012).
"""

from math import isqrt
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from models.config import IndexConfig
from models.index.kind import Material
from models.index.quantised import CODES, four_bit_codes
from models.index.storage import (
    at_least,
    centred,
    code_width,
    half_precision,
    half_precision_codes,
    rescored,
    write_index,
    write_rescored,
)
from models.runs import INDEX_FILE

_ROUNDS = 8
_CANDIDATES = 16
"""Nearest centres among which a label's second list is looked for."""
_ROWS_AT_ONCE = 4096
_POINTS_PER_LIST = 64
_SCANNED_CENTRES = 1024
"""Up to so many centres are compared one after the other, more of them by their codes first."""
_CENTRE_CODE_DIMS = 2
_CENTRES_RESCORED = 2.0
"""Centres that are compared exactly for each list that is visited."""


class IvfFlat:
    """`index.kind = "ivf-flat"`."""

    name = "ivf-flat"
    metric = "inner_product"
    wants_points = False

    def build(self, material: Material, config: IndexConfig, folder: Path) -> list[str]:
        """Cluster the centred vectors, put the raw ones into the lists, write."""
        vectors = material.vectors
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
        order = np.argsort(assigned, kind="stable")
        ends = np.cumsum(np.bincount(assigned, minlength=n_lists))
        codes, start = half_precision_codes(vectors[order]), 0
        for number, end in enumerate(ends.tolist()):
            rows, theirs = order[start:end], codes[start:end]
            if len(rows):
                lists.invlists.add_entries(
                    number, len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(theirs)
                )
            start = end
        lists.ntotal, lists.is_trained = len(vectors), True
        write_index(lists, folder / INDEX_FILE)
        return [INDEX_FILE]

    def params(self, config: IndexConfig) -> dict[str, int | float | str]:
        """Number of lists; 0 says that the label count chose it."""
        return {"ivf_lists": config.ivf_lists}

    def grid(self, config: IndexConfig, n_labels: int) -> list[dict[str, int]]:
        """Lists visited."""
        return [{"nprobe": n} for n in _visits(list_count(config, n_labels))]


class IvfPq:
    """`index.kind = "ivf-pq"`."""

    name = "ivf-pq"
    metric = "inner_product"
    wants_points = False

    def build(self, material: Material, config: IndexConfig, folder: Path) -> list[str]:
        """Cluster and encode the centred vectors, keep the raw ones beside them, write."""
        rows = centred(material.vectors)
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
        write_rescored(lists, material.vectors, folder / INDEX_FILE)
        return [INDEX_FILE]

    def params(self, config: IndexConfig) -> dict[str, int | float | str]:
        """Lists (0: as many as the label count says), lists of a label, dimensions of a code."""
        return {key: getattr(config, key) for key in ("ivf_lists", "ivf_copies", "pq_dims")}

    def grid(self, config: IndexConfig, n_labels: int) -> list[dict[str, int]]:
        """Lists visited and candidates scored again, by what they were measured to cost."""
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


def _length_along(rows: NDArray[np.float32], centres: NDArray[np.float32]) -> np.float32:
    """How long the rows are on average in the direction of their centres of unit norm.

    Divided by it, rows lie around their centres, so that what is left for the codes is small; all
    of a query's scores change by one factor, hence no ranking does.
    """
    along = np.einsum("nd,nd->n", rows, centres).mean()
    return np.maximum(along, np.finfo(np.float32).tiny)


def _coded(
    rows: NDArray[np.float32],
    centres: NDArray[np.float32],
    assigned: NDArray[np.int64],
    width: int,
) -> faiss.IndexIVFPQFastScan:
    """Lists of the rows' codes, still without an index that finds the centres.

    `assigned` (n, copies) says which lists each row is put into.
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
    # add() would look for the nearest centres once more.
    for places in np.ascontiguousarray(assigned.T):
        lists.add_core(len(rows), *map(faiss.swig_ptr, (rows, numbers, places)))
    packed = faiss.IndexIVFPQFastScan(lists)
    packed.own_fields = False
    packed.ntotal = len(rows)  # not of its entries
    return packed


def list_count(config: IndexConfig, n_labels: int) -> int:
    """Lists that are made; by default twice the square root of the labels."""
    return min(config.ivf_lists or 2 * isqrt(n_labels), n_labels)


def _visits(n_lists: int) -> list[int]:
    """Numbers of lists to visit, each about a fifth more than the one before."""
    steps = (1.2**step for step in range(128))
    return sorted({round(step) for step in steps if step < n_lists} | {n_lists})


def _clusters(
    rows: NDArray[np.float32], n_lists: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Centres of unit norm (n_lists, dim) by k-means, and the nearest centre of each row.

    Lists only group the labels: a rough clustering does.
    """
    faiss.omp_set_num_threads(1)
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
    """For each row (n, dim) another list than the nearest, where a query that misses the first one
    finds it; (n, 1). Centres are of unit norm.

    A query is a label and something else. Where the something else leads it away from the list of a
    label, it leads along what separates the label from the list's centre; a second centre on the
    same side would be missed for the same reason. So the second list is one whose centre is near,
    but whose difference from the label points elsewhere (after SOAR, arXiv 2404.00774).
    """
    nearest = faiss.IndexFlatIP(rows.shape[1])
    nearest.add(centres)
    found = np.empty((len(rows), 1), np.int64)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        part = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
        cosines, near = nearest.search(part, min(_CANDIDATES, len(centres)))
        best = _cost(part, cosines, centres[near])[:, 1:].argmin(axis=1) + 1
        found[start : start + len(part), 0] = near[np.arange(len(part)), best]
    return found


def _cost(
    rows: NDArray[np.float32], cosines: NDArray[np.float32], centres: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(n, candidates): what is left of a row beside each of its centres (n, candidates, dim).

    It is squared, and what of it lies along what the first centre leaves counts twice.
    """
    left = rows - cosines[:, :1] * centres[:, 0]
    left /= np.maximum(np.linalg.norm(left, axis=1, keepdims=True), 1e-12)
    along = np.einsum("nd,nd->n", left, rows)[:, None]
    along = along - cosines * np.matmul(centres, left[:, :, None])[:, :, 0]
    return np.asarray(1 - cosines**2 + along**2)
