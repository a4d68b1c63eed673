"""The graph: fp16 vectors linked to their neighbours, walked from node to node."""

from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from models.config import IndexConfig
from models.index.kind import Material
from models.index.storage import centred, half_precision_codes, write_index
from models.runs import INDEX_FILE

GRID = [
    {"ef_search": width}
    for width in (
        *range(10, 32, 2),
        *range(32, 80, 4),
        *range(80, 160, 8),
        *(160, 192, 224, 256, 320, 384, 512, 768, 1024),
    )
]


class Hnsw:
    """`index.kind = "hnsw"`."""

    name = "hnsw"
    metric = "inner_product"
    wants_points = False

    def build(self, material: Material, config: IndexConfig, folder: Path) -> list[str]:
        """Link and write the graph."""
        write_hnsw(material.vectors, config, folder / INDEX_FILE)
        return [INDEX_FILE]

    def params(self, config: IndexConfig) -> dict[str, int | float | str]:
        """Links a node, and the search width with which they were found."""
        return {"m": config.m, "ef_construction": config.ef_construction}

    def grid(self, config: IndexConfig, n_labels: int) -> list[dict[str, int]]:
        """Search widths."""
        return GRID


def write_hnsw(vectors: NDArray[np.float32], config: IndexConfig, path: Path) -> None:
    """A graph linked by the cosine of *centred* vectors, searched by inner product on the vectors.

    Vectors are stored in half precision: a distance costs 0.06 us instead of 0.15, and the ranking
    keeps more than 99.9 % of its top ten (docs/decisions/0007).

    All label vectors share a large direction (it says "no" to every query alike). Subtracting their
    mean changes each query's scores by one constant, hence no ranking, but a graph linked by the
    raw vectors leaves labels that no search reaches: see docs/decisions/0004.
    """
    faiss.omp_set_num_threads(1)  # so that the same vectors give the same bytes
    linked = centred(vectors)
    linked /= np.maximum(np.linalg.norm(linked, axis=1, keepdims=True), 1e-12)
    dim, half = vectors.shape[1], faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexHNSWSQ(dim, half, config.m, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = config.ef_construction
    index.train(linked)
    index.add(linked)
    codes = half_precision_codes(vectors)
    faiss.copy_array_to_vector(codes.reshape(-1), faiss.downcast_index(index.storage).codes)
    write_index(index, path)
