"""The exhaustive scan of fp32 vectors; such a scan is the measure of other kinds' recall."""

from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from models.config import IndexConfig
from models.index.kind import FaissKind
from models.index.storage import write_index


class Flat(FaissKind):
    """`index.kind = "flat"`."""

    name = "flat"

    def _write(self, vectors: NDArray[np.float32], config: IndexConfig, path: Path) -> None:
        """Write an index that scans `vectors` (n, dim)."""
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        write_index(index, path)

    def grid(self, config: IndexConfig, n_labels: int) -> list[dict[str, int]]:
        """The scan alone."""
        return [{}]
