"""What a method trains on: texts, their labels, and the labels that are no negatives of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, eye_array, vstack

from models.data.tokens import TokenizedTexts, concatenate
from models.training.losses import Cells


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Texts and labels; label-text rows, if any, stand after the points.

    `labels` (n, n_labels) holds a target in (0, 1] for each positive. `ignored` cells are neither
    positive nor negative: pairs that the data says to leave out, also where it calls them relevant.
    `uids` name the rows in errors.
    """

    texts: TokenizedTexts
    labels: csr_array
    ignored: csr_array
    uids: Sequence[str]
    known: csr_array = field(init=False)
    """Positives and ignored cells: what must never be drawn as a negative."""

    def __post_init__(self) -> None:
        known = self.labels
        if self.ignored.nnz:
            known = csr_array(self.labels + self.ignored)
            labels = csr_array(self.labels - self.labels.multiply(self.ignored > 0))
            labels.eliminate_zeros()
            object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "known", known)

    def __len__(self) -> int:
        return len(self.texts)


def with_label_rows(points: TrainingRows, label_texts: TokenizedTexts) -> TrainingRows:
    """Append one row for each label: its own text, with itself as the only target (Renee)."""
    n = len(label_texts)
    identity = eye_array(n, dtype=np.float32, format="csr")
    nothing = csr_array((n, n), dtype=np.float32)
    return TrainingRows(
        concatenate(points.texts, label_texts),
        csr_array(vstack([points.labels, identity], format="csr")),
        csr_array(vstack([points.ignored, nothing], format="csr")),
        [*points.uids, *(f"label row {row}" for row in range(n))],
    )


def cells_of(matrix: csr_array, picked: NDArray[np.int64]) -> Cells:
    """Stored cells of the picked rows; `rows` are places within the batch."""
    counts = matrix.indptr[picked + 1] - matrix.indptr[picked]
    rows = np.repeat(np.arange(len(picked)), counts)
    firsts = np.repeat(matrix.indptr[picked] - np.cumsum(counts) + counts, counts)
    places = firsts + np.arange(len(rows))
    return Cells(
        torch.from_numpy(rows),
        torch.from_numpy(matrix.indices[places].astype(np.int64)),
        torch.from_numpy(matrix.data[places].astype(np.float32)),
    )


def targets_at(
    matrix: csr_array, picked: NDArray[np.int64], labels: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Values of the picked rows' cells in the given columns, both (n, K); 0 where none is stored.

    >>> matrix = csr_array(np.array([[0, 0.5, 0], [1.0, 0, 0]]))
    >>> targets_at(matrix, np.array([1, 0]), np.array([[2, 0], [1, 2]]))
    array([[0. , 1. ],
           [0.5, 0. ]], dtype=float32)
    """
    cells, n_labels = cells_of(matrix, picked), matrix.shape[1]
    stored = (cells.rows * n_labels + cells.labels).numpy()
    order = np.argsort(stored)
    stored, values = stored[order], cells.values.numpy()[order]
    wanted = np.arange(len(picked))[:, None] * n_labels + labels
    if not len(stored):
        return np.zeros(labels.shape, np.float32)
    places = np.minimum(np.searchsorted(stored, wanted), len(stored) - 1)
    return np.where(stored[places] == wanted, values[places], np.float32(0))
