"""The material of a label index, and the interface of a kind, which builds it.

`service.core.index` opens and searches a built index.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.config import IndexConfig
from models.runs import INDEX_FILE
from models.training.label_graph import LabelGraph


@dataclass(frozen=True, slots=True)
class Material:
    """The parts of a trained model from which a label index is built.

    `points` and `labels` have no rows if the kind does not need them; their widths are right.
    """

    vectors: NDArray[np.float32]
    """(n_labels, dim); the inner product with a query, plus `logit_bias`, is the label's logit."""
    logit_bias: float
    points: NDArray[np.float32]
    """(n_points, dim); embeddings of the training points by the served encoder."""
    labels: csr_array
    """(n_points, n_labels), 1 where relevant."""
    graph: LabelGraph | None = None
    """Clusters and edges to the labels; None if the method learns none."""


class IndexKind(ABC):
    """A kind of label index: it builds the files, and lists the search parameters to try."""

    name: str
    """The value of `index.kind` in the configuration and of `kind` in the manifest."""
    metric = "inner_product"
    """The meaning of raw scores: `inner_product`, or `probability` (in [0, 1])."""
    wants_points = False
    """Whether it also needs `Material.points` and `Material.labels`."""
    settings: tuple[str, ...] = ()
    """The keys of `IndexConfig` by which the index is built."""

    @abstractmethod
    def build(self, material: Material, config: IndexConfig, folder: Path) -> list[str]:
        """Write the index into `folder`, atomically; returns its file names, the index first."""

    @abstractmethod
    def grid(self, config: IndexConfig, n_labels: int) -> list[dict[str, int]]:
        """Search parameters for the efforts, cheapest first; `{}` is an exhaustive scan."""

    def params(self, config: IndexConfig) -> dict[str, int | float | str]:
        """The values of `settings`, for the manifest."""
        return {key: getattr(config, key) for key in self.settings}


class FaissKind(IndexKind):
    """A kind that is one FAISS file of the label vectors."""

    def build(self, material: Material, config: IndexConfig, folder: Path) -> list[str]:
        """Write the index of `material.vectors`; returns its file name."""
        self.write(material.vectors, config, folder / INDEX_FILE)
        return [INDEX_FILE]

    def write(self, vectors: NDArray[np.float32], config: IndexConfig, path: Path) -> None:
        """Write an index of `vectors` (n, dim), atomically."""
        faiss.omp_set_num_threads(1)  # so that the same vectors give the same bytes
        self._write(vectors, config, path)

    @abstractmethod
    def _write(self, vectors: NDArray[np.float32], config: IndexConfig, path: Path) -> None: ...
