"""What a peer is: a system of somebody else's, trained on the features that features.py makes.

A peer's package is imported when the peer is built and not before, so that nothing here is needed
without the extra. Which peers there are, and how they are called, is registry.py.
"""

import itertools
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix


class Peer(Protocol):
    """A multi-label classifier over sparse features: trained on all cores, asked on one thread."""

    title: str
    version: str
    settings: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        """What the trained model takes on disk."""
        ...

    def fit(self, features: csr_matrix, labels: csr_matrix) -> None:
        """Train on (n, n_features) float32 and (n, n_labels) float32."""
        ...

    def rank(self, features: csr_matrix, k: int) -> NDArray[np.int64]:
        """Label rows (n, k), best first, with -1 where a query has no more."""
        ...


def version_of(distribution: str) -> str:
    """Name and version of an installed package.

    >>> version_of("numpy").startswith("numpy ")
    True
    """
    return f"{distribution} {metadata.version(distribution)}"


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def padded(rows: list[list[int]], k: int) -> NDArray[np.int64]:
    """Rankings of any length as one (n, k) array.

    >>> padded([[7, 3], [1, 2, 5, 4]], k=3)
    array([[ 7,  3, -1],
           [ 1,  2,  5]])
    """
    ranked = np.full((len(rows), k), -1, np.int64)
    for position, row in enumerate(rows):
        ranked[position, : min(len(row), k)] = row[:k]
    return ranked


def rows_of(matrix: csr_matrix) -> Iterator[tuple[list[int], list[float]]]:
    """Columns and values of each row, as plain numbers."""
    indices, values = matrix.indices.tolist(), matrix.data.tolist()
    bounds = matrix.indptr.tolist()
    for start, end in itertools.pairwise(bounds):
        yield indices[start:end], values[start:end]
