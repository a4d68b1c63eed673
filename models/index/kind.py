"""The material of a label index, and the interface of a kind, which builds it.

`service.core.index` opens and searches a built index.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.config import IndexConfig
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


class IndexKind(Protocol):
    """A kind of label index: it builds the files, and lists the search parameters to try."""

    @property
    def name(self) -> str:
        """The value of `index.kind` in the configuration and of `kind` in the manifest."""
        ...

    @property
    def metric(self) -> str:
        """The meaning of raw scores: `inner_product`, or `probability` (in [0, 1])."""
        ...

    @property
    def wants_points(self) -> bool:
        """Whether it also needs `Material.points` and `Material.labels`."""
        ...

    def build(self, material: Material, config: IndexConfig, folder: Path) -> list[str]:
        """Write the index into `folder`, atomically; returns its file names, the index first."""
        ...

    def params(self, config: IndexConfig) -> dict[str, int | float | str]:
        """The settings of the build, for the manifest; the keys are those of `IndexConfig`."""
        ...

    def grid(self, config: IndexConfig, n_labels: int) -> list[dict[str, int]]:
        """Search parameters for the efforts, cheapest first; `{}` is an exhaustive scan."""
        ...
