"""The exhaustive scan of fp32 vectors; such a scan is the measure of other kinds' recall."""

from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from models.config import IndexConfig
from models.index.kind import Material
from models.index.storage import write_index
from models.runs import INDEX_FILE


class Flat:
    """`index.kind = "flat"`."""

    name = "flat"
    metric = "inner_product"
    wants_points = False

    def build(self, material: Material, config: IndexConfig, folder: Path) -> list[str]:
        """Write the index of `material.vectors`; returns its file name."""
        write_flat(material.vectors, folder / INDEX_FILE)
        return [INDEX_FILE]

    def params(self, config: IndexConfig) -> dict[str, int | float | str]:
        """Nothing: the kind has no settings."""
        return {}

    def grid(self, config: IndexConfig, n_labels: int) -> list[dict[str, int]]:
        """The scan alone."""
        return [{}]


def write_flat(vectors: NDArray[np.float32], path: Path) -> None:
    """Write an index that scans `vectors` (n, dim)."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    write_index(index, path)
