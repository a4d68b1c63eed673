"""The FAISS kinds behind the LabelIndex protocol, by inner product: flat (fp32) and HNSW (fp16).

The index file is opened memory-mapped, so that several processes share one copy. `exact` scans the
stored vectors whatever the kind, so a caller can always ask for the truth.
"""

from collections.abc import Mapping
from pathlib import Path

import faiss
import numpy as np

from service.core.index.protocol import check_queries
from service.core.types import Float32Rows, Hits
from service.errors import BundleMismatch

EXACT = "exact"


class FaissIndex:
    """`efforts` maps an effort's name to search parameters (`ef_search` for HNSW)."""

    def __init__(self, index: faiss.Index, efforts: Mapping[str, Mapping[str, int]]) -> None:
        self._owner = index  # the downcast views below do not keep the index alive
        self._index = faiss.downcast_index(index)
        self.kind = "hnsw" if isinstance(self._index, faiss.IndexHNSW) else "flat"
        self.dim = int(index.d)
        self.n_rows = int(index.ntotal)
        self._storage = (
            faiss.downcast_index(self._index.storage) if self.kind == "hnsw" else self._index
        )
        self._params = {name: self._search_params(params) for name, params in efforts.items()}

    def search(self, queries: Float32Rows, k: int, effort: str) -> Hits:
        """Top k rows by inner product; `exact` ignores the graph."""
        check_queries(queries, self.dim, k)
        k = min(k, self.n_rows)
        # OpenMP's thread count belongs to the calling thread, so it is set where it is used:
        # lanes are the parallelism, and one query never wakes a second core.
        faiss.omp_set_num_threads(1)
        if len(queries) == 0:
            return Hits(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
        params = self._params[effort]
        if params is None:
            scores, rows = self._storage.search(queries, k)
        else:
            scores, rows = self._index.search(queries, k, params=params)
            # FAISS fills up with -1 from the end, so the last column tells.
            if (short := rows[:, -1] < 0).any():
                # The graph can run dry before k; the caller asked for k, so these are scanned.
                scores[short], rows[short] = self._storage.search(queries[short], k)
        return Hits(rows, scores)

    def _search_params(self, params: Mapping[str, int]) -> faiss.SearchParameters | None:
        if self.kind == "flat" or "ef_search" not in params:
            return None
        return faiss.SearchParametersHNSW(efSearch=int(params["ef_search"]))


def open_faiss(
    path: Path, dim: int, n_rows: int, efforts: Mapping[str, Mapping[str, int]]
) -> FaissIndex:
    """Memory-map an index file; raises BundleMismatch where it is not what the manifest says."""
    try:
        raw = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as exc:
        raise BundleMismatch(f"{path} is not an index that FAISS can read: {exc}") from exc
    if raw.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise BundleMismatch(f"{path} has metric {raw.metric_type}, expected inner product")
    index = FaissIndex(raw, efforts)
    if (index.dim, index.n_rows) != (dim, n_rows):
        raise BundleMismatch(
            f"{path} holds {index.n_rows} vectors of {index.dim}, the manifest says "
            f"{n_rows} of {dim}"
        )
    return index
