"""PLT of napkinXC: a probabilistic label tree with logistic regression in every node.

Its search is exact and no beam search. That is the library's default, and gives its best answers.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from models.compare.peers.peer import folder_bytes, padded, version_of
from models.extras import need


class NapkinPlt:
    """One tree with the library's defaults and a fixed seed; the library keeps it in `folder`."""

    title = "PLT"

    def __init__(self, folder: Path) -> None:
        models = need("napkinxc.models")
        self.version = version_of("napkinxc")
        self.settings: dict[str, Any] = {"tree_search_type": "exact", "ensemble": 1, "seed": 1}
        self._folder = folder
        self._model = models.PLT(str(folder), **self.settings)

    @property
    def size_bytes(self) -> int:
        """Bytes of the tree and its weights."""
        return folder_bytes(self._folder)

    def fit(self, features: csr_matrix, labels: csr_matrix) -> None:
        """Build the tree and train its nodes; meanwhile the library writes the model."""
        self._model.fit(features, labels)
        self._model.set_params(threads=1)

    def rank(self, features: csr_matrix, k: int) -> NDArray[np.int64]:
        """Search the tree best first; label rows (n, k)."""
        return padded(self._model.predict(features, top_k=k), k)
