"""The FAISS kinds behind the LabelIndex protocol, all by inner product.

kind          a search compares                   parameters            mapped part of the file
flat          every fp32 vector                   none                  all
hnsw          a walk over fp16 vectors            ef_search             all
sq8           every label's bytes, then the       rescored              all
              best `rescored` of them in fp16
pq-fastscan   every label's 4-bit codes, then     rescored              the fp16 vectors
              likewise
ivf-flat      the fp16 vectors in `nprobe` lists  nprobe                all but the lists' centres
ivf-pq        4-bit codes in `nprobe` lists,      nprobe, rescored      the fp16 vectors
              each label in one or two, then
              likewise

Files are memory-mapped, so that several processes share one copy. FAISS reads only four-bit codes
into the memory of each process: half a byte for each code of a label. At effort `exact` every kind
scans the stored vectors (fp32 for flat, else fp16).
"""

from collections.abc import Mapping
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from service.core.index.faiss_file import read_faiss
from service.core.index.protocol import check_queries
from service.core.types import Float32Rows, Hits
from service.errors import BundleMismatch

_UNTIL_BLAS = 16
"""Most queries in one call. FAISS multiplies larger batches of fp32 queries as matrices, which
rounds differently (`distance_compute_blas_threshold`, 20 in FAISS)."""
_ONE_QUERY_AFTER_THE_OTHER = 11
"""The `implem` of FAISS' list scan that computes query by query, so that ties do not depend on the
batch."""

_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "flat": (),
    "hnsw": ("ef_search",),
    "sq8": ("rescored",),
    "pq-fastscan": ("rescored",),
    "ivf-flat": ("nprobe",),
    "ivf-pq": ("nprobe", "rescored"),
}
_RESCORED: Mapping[str, int] = {"sq8": 2, "pq-fastscan": 4, "ivf-pq": 4}
"""Least candidates that are scored again, as a multiple of k, however small `rescored` is."""


class FaissIndex:
    """A FAISS index as a LabelIndex.

    `efforts` maps an effort's name to its search parameters; without any the search is exhaustive.
    `batched` lets a flat index multiply large batches as matrices. That is much faster, but the
    last bits of a score then depend on the batch: use it to measure, not to serve. Raises
    ValueError if FAISS' type is no kind of ours, or an effort lacks a parameter.
    """

    def __init__(
        self,
        index: faiss.Index,
        efforts: Mapping[str, Mapping[str, int]],
        *,
        batched: bool = False,
    ) -> None:
        self._owner = index  # holds a reference, because the downcast views below do not
        self._index = faiss.downcast_index(index)
        self.kind = _kind(self._index)
        self.dim = int(index.d)
        self.n_rows = int(index.ntotal)
        self._copies = 1
        self._storage = self._find_storage()
        self._at_once = None if batched or self.kind != "flat" else _UNTIL_BLAS
        self._efforts = {name: self._known(params) for name, params in efforts.items()}
        self._params: dict[tuple[str, int], faiss.SearchParameters] = {}

    def search(self, queries: Float32Rows, k: int, effort: str) -> Hits:
        """Top k rows of each query by inner product; an effort without parameters scans all."""
        check_queries(queries, self.dim, k)
        k = min(k, self.n_rows)
        # OpenMP keeps a thread count for each calling thread, so set it in every call. Lanes are
        # the parallelism; one query must not wake a second core.
        faiss.omp_set_num_threads(1)
        settings = self._efforts[effort]
        if len(queries) == 0:
            return Hits(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
        if not settings:
            return self._scan(queries, k)
        params = self._search_params(effort, k)
        scores, rows = self._index.search(queries, self._copies * k, params=params)
        if self._copies > 1:
            scores, rows = _without_repeats(scores, rows, k)
        # FAISS pads at the end with -1, so the last column shows which queries lack hits.
        if (short := rows[:, -1] < 0).any():
            # A search can find fewer than k rows: scan for these queries.
            scan = self._scan(queries[short], k)
            scores[short], rows[short] = scan.scores, scan.rows
        return Hits(rows, scores)

    def search_among(self, queries: Float32Rows, rows: NDArray[np.int64], k: int) -> Hits:
        """Top k of `rows`, which rise, by inner product with the stored vectors."""
        check_queries(queries, self.dim, k)
        k = min(k, len(rows))
        if len(queries) == 0 or k == 0:
            return Hits(np.empty((len(queries), k), np.int64), np.empty((len(queries), k), "f4"))
        faiss.omp_set_num_threads(1)
        if self.kind == "ivf-flat":  # FAISS can read whole lists only, not single rows
            selector = faiss.IDSelectorBatch(np.ascontiguousarray(rows, np.int64))
            params = faiss.SearchParametersIVF(nprobe=self._storage.nlist, sel=selector)
            scores, hit_rows = self._storage.search(queries, k, params=params)
            return Hits(hit_rows, scores)
        vectors = self.vectors(np.ascontiguousarray(rows, np.int64))
        parts = [
            faiss.knn(queries[start : start + _UNTIL_BLAS], vectors, k, faiss.METRIC_INNER_PRODUCT)
            for start in range(0, len(queries), _UNTIL_BLAS)
        ]
        scores, places = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return Hits(np.asarray(rows[places]), scores)

    def vectors(self, rows: NDArray[np.int64]) -> Float32Rows:
        """The stored vectors (n, dim) of `rows`, which `exact` compares.

        ivf-flat reads all vectors for it.
        """
        if self.kind != "ivf-flat":
            return np.asarray(self._storage.reconstruct_batch(rows))
        vectors = np.empty((self.n_rows, self.dim), np.float32)
        lists = self._storage.invlists
        for number in range(self._storage.nlist):
            if size := lists.list_size(number):
                list_rows = faiss.rev_swig_ptr(lists.get_ids(number), size)
                codes = faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size)
                vectors[list_rows] = codes.view(np.float16).reshape(size, self.dim)
        return vectors[rows]

    def _scan(self, queries: Float32Rows, k: int) -> Hits:
        params = None
        if self.kind == "ivf-flat":
            params = faiss.SearchParametersIVF(nprobe=self._storage.nlist)
        size = self._at_once or len(queries)
        parts = [
            self._storage.search(queries[start : start + size], k, params=params)
            for start in range(0, len(queries), size)
        ]
        if len(parts) == 1:
            scores, rows = parts[0]
        else:
            scores, rows = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return Hits(rows, scores)

    def _find_storage(self) -> faiss.Index:
        """The part of the index whose vectors `exact` scans."""
        if self.kind == "hnsw":
            return faiss.downcast_index(self._index.storage)
        if self.kind in _RESCORED:
            base = faiss.downcast_index(self._index.base_index)
            if self.kind == "ivf-pq":
                base.implem = _ONE_QUERY_AFTER_THE_OTHER
                self._copies = max(1, base.invlists.compute_ntotal() // max(1, self.n_rows))
            return faiss.downcast_index(self._index.refine_index)
        return self._index

    def _known(self, params: Mapping[str, int]) -> dict[str, int]:
        """The parameters of this kind; an effort may also hold those of a memory."""
        names = _PARAMETERS[self.kind]
        own = {key: int(params[key]) for key in names if key in params}
        if 0 < len(own) < len(names):
            raise ValueError(f"wants {' and '.join(names)} in an effort, found {dict(params)}")
        return own

    def _search_params(self, effort: str, k: int) -> faiss.SearchParameters:
        """The FAISS parameters of an effort, from a cache.

        They depend on k too, because FAISS takes the shortlist as a multiple of k.
        """
        params = self._params.get((effort, k))
        if params is None:
            params = self._params[effort, k] = self._make_params(self._efforts[effort], k)
        return params

    def _make_params(self, settings: Mapping[str, int], k: int) -> faiss.SearchParameters:
        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=settings["ef_search"])
        lists = None
        if "nprobe" in _PARAMETERS[self.kind]:
            # With an nprobe above the number of lists FAISS reads junk for the rest.
            n_lists = faiss.downcast_index(getattr(self._index, "base_index", self._index)).nlist
            lists = faiss.SearchParametersIVF(nprobe=min(settings["nprobe"], n_lists))
        if self.kind not in _RESCORED:
            return lists
        width, entries = self._copies * k, self._copies * self.n_rows
        shortlist = min(max(settings["rescored"], _RESCORED[self.kind] * k), entries)
        # FAISS truncates k_factor * width to an integer; the half guards against rounding errors.
        return faiss.IndexRefineSearchParameters(
            k_factor=(shortlist + 0.5) / width, base_index_params=lists
        )


def _without_repeats(
    scores: NDArray[np.float32], rows: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores and rows (n, k) of the first k distinct rows of each query, padded with row -1."""
    top_rows = np.full((len(rows), k), -1, np.int64)
    top_scores = np.zeros((len(rows), k), np.float32)
    for query, (numbers, values) in enumerate(zip(rows.tolist(), scores.tolist(), strict=True)):
        score_of = dict(zip(numbers, values, strict=True))  # in order; a repeat has the same score
        score_of.pop(-1, None)
        size = min(k, len(score_of))
        top_rows[query, :size] = [*score_of][:k]
        top_scores[query, :size] = [*score_of.values()][:k]
    return top_scores, top_rows


def _kind(index: faiss.Index) -> str:
    """Our name for the kind of a FAISS index; raises ValueError for any other type."""
    if isinstance(index, faiss.IndexRefine):
        base = faiss.downcast_index(index.base_index)
        for kind, types in _BASES.items():
            if isinstance(base, types):
                return kind
    for kind, types in _TYPES.items():
        if isinstance(index, types):
            return kind
    raise ValueError(f"holds a {type(index).__name__}, which is no kind of label index")


_TYPES = {
    "flat": faiss.IndexFlat,
    "hnsw": faiss.IndexHNSW,
    "ivf-flat": faiss.IndexIVFScalarQuantizer,
}
_BASES = {
    "sq8": faiss.IndexScalarQuantizer,
    "pq-fastscan": faiss.IndexPQFastScan,
    "ivf-pq": faiss.IndexIVFPQFastScan,
}


def open_faiss(
    path: Path,
    dim: int,
    n_rows: int,
    efforts: Mapping[str, Mapping[str, int]],
    kind: tuple[str, str] | None = None,
) -> FaissIndex:
    """Memory-map an index file; raises BundleMismatch if it differs from the manifest.

    `kind` is a field of the manifest and the kind that it names; None takes every kind.
    """
    raw = read_faiss(path, dim, n_rows)
    try:
        index = FaissIndex(raw, efforts)
    except ValueError as exc:
        raise BundleMismatch(f"{path} {exc}") from exc
    if (index.dim, index.n_rows) != (dim, n_rows):
        raise BundleMismatch(
            f"{path} holds {index.n_rows} vectors of {index.dim}, the manifest says "
            f"{n_rows} of {dim}"
        )
    if kind is not None and index.kind != kind[1]:
        raise BundleMismatch(
            f"{path} is of kind {index.kind}, the manifest says {kind[0]} {kind[1]}"
        )
    return index
