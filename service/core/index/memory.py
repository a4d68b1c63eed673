"""Memory: training queries that answers look up, found by their embeddings, and their labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.bundle.manifest import EXACT, MemoryInfo
from service.core.index.faiss_index import open_faiss
from service.core.index.memory_labels import MemoryLabels, open_memory_labels
from service.core.index.protocol import LabelIndex
from service.core.types import Float32Rows, Hits

MEMORY_EF_SEARCH: Final = "memory_ef_search"
"""Effort parameter: the memory's `ef_search`. An effort without it scans the whole memory."""


@dataclass(frozen=True, slots=True)
class Memory:
    """An index over training queries, and the labels of each.

    An answer looks at the `neighbours` nearest ones, and weighs them by a softmax of their cosines
    over `temperature`.
    """

    index: LabelIndex
    labels: MemoryLabels
    neighbours: int
    temperature: float

    def recall(self, queries: Float32Rows, effort: str) -> Hits:
        """The neighbours of each query (n, dim) that an answer at this effort uses, with cosines.

        Rows are those of the memory, not of labels.
        """
        return self.index.search(queries, self.neighbours, effort)

    def labels_of(self, neighbour: int) -> NDArray[np.int32]:
        """Label rows of the training query in row `neighbour` of the memory."""
        starts = self.labels.offsets
        return self.labels.labels[starts[neighbour] : starts[neighbour + 1]]


def open_memory(
    folder: Path,
    info: MemoryInfo,
    dim: int,
    n_labels: int,
    efforts: Mapping[str, Mapping[str, int]],
) -> Memory:
    """Open a bundle's memory; raises BundleMismatch.

    `efforts` maps an effort's name to the parameters of its operating point.
    """
    params = {name: _search_params(info, name, effort) for name, effort in efforts.items()}
    index_file, *array_files = info.files
    kind = "memory.kind", info.kind
    index = open_faiss(folder / index_file, dim, info.n_rows, params, kind)
    paths = [folder / name for name in array_files]
    labels = open_memory_labels(paths, info.n_rows, n_labels)
    return Memory(index, labels, info.neighbours, info.temperature)


def _search_params(info: MemoryInfo, name: str, effort: Mapping[str, int]) -> dict[str, int]:
    """The parameters of the memory's index at an effort; empty for a full scan."""
    if info.kind == "pq-fastscan":
        return {} if name == EXACT else {"rescored": info.neighbours}
    return {"ef_search": effort[MEMORY_EF_SEARCH]} if MEMORY_EF_SEARCH in effort else {}
