"""The FAISS kinds behind the LabelIndex protocol, all by inner product.

kind          what a search compares              parameters            what is mapped, not read
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

Files are opened memory-mapped, so that several processes share one copy. Codes of four bits are
what FAISS reads into memory of the process: half a byte for each code of a label. `exact` scans the
stored vectors (fp32 for flat, else fp16) whatever the kind, so a caller can ask for the truth.
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
"""FAISS multiplies larger batches of fp32 queries as matrices, which rounds otherwise."""
_ONE_QUERY_AFTER_THE_OTHER = 11
"""FAISS' number for its list scan that does not group queries, so ties fall alike in any batch."""

_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "flat": (),
    "hnsw": ("ef_search",),
    "sq8": ("rescored",),
    "pq-fastscan": ("rescored",),
    "ivf-flat": ("nprobe",),
    "ivf-pq": ("nprobe", "rescored"),
}
_RESCORED: Mapping[str, int] = {"sq8": 2, "pq-fastscan": 4, "ivf-pq": 4}
"""However few `rescored` says, so many candidates are scored again for each label asked for."""


class FaissIndex:
    """`efforts` maps an effort's name to search parameters; none of them means exhaustive.

    `batched` multiplies large batches as matrices where the kind is flat: much faster, but then the
    last bits of a score depend on the batch. It is for measuring, not for serving.
    """

    def __init__(
        self,
        index: faiss.Index,
        efforts: Mapping[str, Mapping[str, int]],
        *,
        batched: bool = False,
    ) -> None:
        self._owner = index  # the downcast views below do not keep the index alive
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
        """Top k rows by inner product; `exact` scans the stored vectors."""
        check_queries(queries, self.dim, k)
        k = min(k, self.n_rows)
        # OpenMP's thread count belongs to the calling thread, so it is set where it is used:
        # lanes are the parallelism, and one query never wakes a second core.
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
        # FAISS fills up with -1 from the end, so the last column tells.
        if (short := rows[:, -1] < 0).any():
            # The search can run dry before k; the caller asked for k, so these are scanned.
            scanned = self._scan(queries[short], k)
            scores[short], rows[short] = scanned.scores, scanned.rows
        return Hits(rows, scores)

    def search_among(self, queries: Float32Rows, rows: NDArray[np.int64], k: int) -> Hits:
        """Top k of `rows` by inner product with the stored vectors."""
        check_queries(queries, self.dim, k)
        k = min(k, len(rows))
        if len(queries) == 0 or k == 0:
            return Hits(np.empty((len(queries), k), np.int64), np.empty((len(queries), k), "f4"))
        faiss.omp_set_num_threads(1)
        if self.kind == "ivf-flat":  # rows lie in lists, and only a list can be read
            selector = faiss.IDSelectorBatch(np.ascontiguousarray(rows, np.int64))
            params = faiss.SearchParametersIVF(nprobe=self._storage.nlist, sel=selector)
            scores, found = self._storage.search(queries, k, params=params)
            return Hits(found, scores)
        vectors = self.vectors(np.ascontiguousarray(rows, np.int64))
        parts = [
            faiss.knn(queries[start : start + _UNTIL_BLAS], vectors, k, faiss.METRIC_INNER_PRODUCT)
            for start in range(0, len(queries), _UNTIL_BLAS)
        ]
        scores, places = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return Hits(np.asarray(rows[places]), scores)

    def vectors(self, rows: NDArray[np.int64]) -> Float32Rows:
        """Stored vectors (n, dim) of rows, as `exact` compares them; ivf-flat reads them all."""
        if self.kind != "ivf-flat":
            return np.asarray(self._storage.reconstruct_batch(rows))
        found = np.empty((self.n_rows, self.dim), np.float32)
        lists = self._storage.invlists
        for number in range(self._storage.nlist):
            if size := lists.list_size(number):
                theirs = faiss.rev_swig_ptr(lists.get_ids(number), size)
                codes = faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size)
                found[theirs] = codes.view(np.float16).reshape(size, self.dim)
        return found[rows]

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
        """What holds the vectors that `exact` scans."""
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
        """The parameters that are this kind's; an effort may hold a memory's beside them."""
        wanted = _PARAMETERS[self.kind]
        found = {key: int(params[key]) for key in wanted if key in params}
        if 0 < len(found) < len(wanted):
            raise ValueError(f"wants {' and '.join(wanted)} in an effort, found {dict(params)}")
        return found

    def _search_params(self, effort: str, k: int) -> faiss.SearchParameters:
        """Made once for an effort and a k: FAISS is told the shortlist as a multiple of k."""
        made = self._params.get((effort, k))
        if made is None:
            made = self._params[effort, k] = self._make_params(self._efforts[effort], k)
        return made

    def _make_params(self, settings: Mapping[str, int], k: int) -> faiss.SearchParameters:
        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=settings["ef_search"])
        lists = None
        if "nprobe" in _PARAMETERS[self.kind]:
            # Asked for more lists than there are, FAISS takes junk for the rest.
            n_lists = faiss.downcast_index(getattr(self._index, "base_index", self._index)).nlist
            lists = faiss.SearchParametersIVF(nprobe=min(settings["nprobe"], n_lists))
        if self.kind not in _RESCORED:
            return lists
        wanted, entries = self._copies * k, self._copies * self.n_rows
        shortlist = min(max(settings["rescored"], _RESCORED[self.kind] * k), entries)
        # FAISS cuts the product down to a whole number; the half keeps rounding out of it.
        return faiss.IndexRefineSearchParameters(
            k_factor=(shortlist + 0.5) / wanted, base_index_params=lists
        )


def _without_repeats(
    scores: NDArray[np.float32], rows: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The first k different rows of each line, filled up with -1 from the end."""
    kept = np.full((len(rows), k), -1, np.int64), np.zeros((len(rows), k), np.float32)
    for place, (numbers, theirs) in enumerate(zip(rows.tolist(), scores.tolist(), strict=True)):
        found = dict(zip(numbers, theirs, strict=True))  # in order; a repeat has the same score
        found.pop(-1, None)
        size = min(k, len(found))
        kept[0][place, :size] = [*found][:k]
        kept[1][place, :size] = [*found.values()][:k]
    return kept[1], kept[0]


def _kind(index: faiss.Index) -> str:
    """The kind of a FAISS index; raises ValueError where it is none of ours."""
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
    path: Path, dim: int, n_rows: int, efforts: Mapping[str, Mapping[str, int]]
) -> FaissIndex:
    """Memory-map an index file; raises BundleMismatch where it is not what the manifest says."""
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
    return index
