"""The graph (HNSW, arXiv 1603.09320): fp16 vectors with links to their neighbours."""

from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from models.config import IndexConfig
from models.index.kind import FaissKind
from models.index.storage import centred, half_precision_codes, write_index

GRID = [
    {"ef_search": width}
    for width in (
        *range(10, 32, 2),
        *range(32, 80, 4),
        *range(80, 160, 8),
        *(160, 192, 224, 256, 320, 384, 512, 768, 1024),
    )
]
"""Search widths to choose from. A choice: each is a twentieth to a half above the one before."""


class Hnsw(FaissKind):
    """`index.kind = "hnsw"`."""

    name = "hnsw"
    settings = ("m", "ef_construction")

    def _write(self, vectors: NDArray[np.float32], config: IndexConfig, path: Path) -> None:
        """Write the raw vectors in half precision, with links by the cosine of *centred* ones.

        Half precision makes searches faster and costs almost no recall (docs/decisions/0007).

        All label vectors share a large direction, which lowers all scores alike. A graph with links
        by the raw vectors has labels that no search reaches. Without the mean, all scores of a
        query change by the same constant, so rankings stay (docs/decisions/0004).
        """
        directions = centred(vectors)
        directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
        dim, half = vectors.shape[1], faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexHNSWSQ(dim, half, config.m, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = config.ef_construction
        index.train(directions)
        index.add(directions)
        codes = half_precision_codes(vectors)
        faiss.copy_array_to_vector(codes.reshape(-1), faiss.downcast_index(index.storage).codes)
        write_index(index, path)

    def grid(self, config: IndexConfig, n_labels: int) -> list[dict[str, int]]:
        """Search widths, smallest first."""
        return GRID
