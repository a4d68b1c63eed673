"""Parabel and Bonsai as Omikuji trains them: forests of label trees with linear classifiers.

Parabel (Prabhu et al., 2018) splits labels in two balanced halves. Bonsai (Khandagale et al., 2020)
splits them in up to a hundred clusters of any size, three levels deep. Omikuji takes no seed, so
two trainings differ by some tenths of a point.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from models.compare.peers.peer import folder_bytes, padded, rows_of, version_of
from models.extras import need

BEAM = 10  # Omikuji's default


def parabel(folder: Path) -> "OmikujiTrees":
    """Three balanced binary trees, which are the library's defaults."""
    return OmikujiTrees("Parabel", folder, {"n_trees": 3, "cluster_k": 2, "cluster_balanced": True})


def bonsai(folder: Path) -> "OmikujiTrees":
    """Three shallow, wide, unbalanced trees, with the settings that the library's page gives."""
    settings = {"n_trees": 3, "cluster_k": 100, "cluster_balanced": False, "max_depth": 3}
    return OmikujiTrees("Bonsai", folder, settings)


class OmikujiTrees:
    """A forest of label trees. Its training file and its model lie in `folder`."""

    def __init__(self, title: str, folder: Path, trees: dict[str, Any]) -> None:
        self._omikuji = need("omikuji")
        self.title = title
        self.version = version_of("omikuji")
        self.settings = trees | {"beam": BEAM}
        self._trees = trees
        self._folder = folder
        self._model: Any = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the saved forest."""
        return folder_bytes(self._folder)

    def fit(self, features: csr_matrix, labels: csr_matrix) -> None:
        """Train from a file, which is all that Omikuji reads, and save the forest."""
        data = self._folder / "train.txt"
        _write(data, features, labels)
        settings = self._omikuji.Model.default_hyper_param()
        for name, value in self._trees.items():
            setattr(settings, name, value)
        with _silent():
            self._model = self._omikuji.Model.train_on_data(str(data), settings)
            data.unlink()
            self._model.save(str(self._folder))
        self._model.init_prediction_thread_pool(1)

    def rank(self, features: csr_matrix, k: int) -> NDArray[np.int64]:
        """Beam search, one query at a time as the library takes no batch; label rows (n, k)."""
        answers = [
            self._model.predict(list(zip(columns, values, strict=True)), BEAM, k)
            for columns, values in rows_of(features)
        ]
        return padded([[label for label, _ in hits] for hits in answers], k)


def _write(path: Path, features: csr_matrix, labels: csr_matrix) -> None:
    """Write the Extreme Classification Repository's old format: labels, then `feature:value`."""
    with path.open("w", encoding="ascii") as file:
        file.write(f"{features.shape[0]} {features.shape[1]} {labels.shape[1]}\n")
        for (columns, values), (rows, _) in zip(rows_of(features), rows_of(labels), strict=True):
            pairs = "".join(f" {c}:{v:.6g}" for c, v in zip(columns, values, strict=True))
            # Omikuji refuses a line that ends in a blank, so each blank comes with a feature.
            file.write(f"{','.join(map(str, rows))}{pairs}\n")


@contextmanager
def _silent() -> Iterator[None]:
    """Send the process's standard output and error to nowhere.

    Omikuji writes log lines and progress bars to both, and the table goes to standard output.
    """
    copies = {stream: os.dup(stream) for stream in (1, 2)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in copies:
            os.dup2(nowhere, stream)
        yield
    finally:
        for stream, copy in copies.items():
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nowhere)
