"""The protocol of a peer, somebody else's system that trains on the features of features.py.

A peer imports its package when it is built, so that the rest works without the extra `peers`.
registry.py lists the peers and their names.
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
    """A multi-label classifier over sparse features; it trains on all cores and ranks on one."""

    title: str
    version: str
    settings: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        """Bytes of the trained model on disk."""
        ...

    def fit(self, features: csr_matrix, labels: csr_matrix) -> None:
        """Train on features (n, n_features) float32 and labels (n, n_labels) float32."""
        ...

    def rank(self, features: csr_matrix, k: int) -> NDArray[np.int64]:
        """Label rows (n, k) for features (n, n_features), best first; -1 fills up short rows."""
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
    """Rankings of any length as one (n, k) array, cut off at k or filled up with -1.

    >>> padded([[7, 3], [1, 2, 5, 4]], k=3)
    array([[ 7,  3, -1],
           [ 1,  2,  5]])
    """
    ranked = np.full((len(rows), k), -1, np.int64)
    for position, row in enumerate(rows):
        ranked[position, : min(len(row), k)] = row[:k]
    return ranked


def rows_of(matrix: csr_matrix) -> Iterator[tuple[list[int], list[float]]]:
    """The columns and the values of each row of a matrix, as lists of Python numbers."""
    indices, values = matrix.indices.tolist(), matrix.data.tolist()
    bounds = matrix.indptr.tolist()
    for start, end in itertools.pairwise(bounds):
        yield indices[start:end], values[start:end]
