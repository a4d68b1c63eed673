"""What a label index is built from, and what every kind of it offers to the training side.

A kind only builds; how a built index is opened and searched is `service.core.index`.
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
    """What a label index may be built from, of one trained model.

    `points` and `labels` are empty, but of the right width, where the kind does not want them.
    """

    vectors: NDArray[np.float32]
    """(n_labels, dim): inner product with a query + `logit_bias` is the label's logit."""
    logit_bias: float
    points: NDArray[np.float32]
    """(n_points, dim): embeddings of the training points, as the served encoder makes them."""
    labels: csr_array
    """(n_points, n_labels), 1 where relevant."""
    graph: LabelGraph | None = None
    """Clusters and edges to the labels, of a method that learns them."""


class IndexKind(Protocol):
    """One kind of label index, as the training side sees it."""

    @property
    def name(self) -> str:
        """What `index.kind` says in the configuration and in the manifest."""
        ...

    @property
    def metric(self) -> str:
        """How raw scores are made: `inner_product`, or `probability` (they are in [0, 1])."""
        ...

    @property
    def wants_points(self) -> bool:
        """Whether it is built from `Material.points` and `labels` too."""
        ...

    def build(self, material: Material, config: IndexConfig, folder: Path) -> list[str]:
        """Write the index atomically into `folder`; the names of its files, the index first."""
        ...

    def params(self, config: IndexConfig) -> dict[str, int | float | str]:
        """How it is built, for the manifest; the keys are those of `IndexConfig`."""
        ...

    def grid(self, config: IndexConfig, n_labels: int) -> list[dict[str, int]]:
        """Search parameters to choose efforts from, cheapest first; `{}` is an exhaustive scan."""
        ...
