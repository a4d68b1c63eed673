"""The rows that a method trains on: texts, their labels, and cells that are no negatives."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, eye_array, vstack

from models.data.tokens import TokenizedTexts, concatenate
from models.training.losses import Cells

LEAST_COOCCURRENCE: Final = 0.1
"""Gandalf's threshold delta: what comes along less often than that is chance."""
PRIOR_POINTS: Final = 5
"""A choice: with one point a label says nothing (1 / 6 of each other label at most), with five half
of what was counted."""


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """n texts and their labels; label-text rows, if any, come after the points.

    `labels` (n, n_labels) holds a target in (0, 1] for each positive. `ignored` cells (n, n_labels)
    are the data's filter pairs. They are neither positive nor negative, even if the data also
    calls them relevant. `uids` name the rows in errors.
    """

    texts: TokenizedTexts
    labels: csr_array
    ignored: csr_array
    uids: Sequence[str]
    known: csr_array = field(init=False)
    """Positives and ignored cells (n, n_labels); none of them may become a negative."""

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


def with_label_rows(
    points: TrainingRows, label_texts: TokenizedTexts, cooccurrence: float = 0.0
) -> TrainingRows:
    """Append one row for each label: its text, with the label as its target.

    The idea is Renee's (Jain et al., MLSys 2023). Labels that often come with it are targets too,
    of `cooccurrence` times their probability beside it, as in Gandalf (Kharbanda et al., KDD 2024).
    """
    n = len(label_texts)
    targets = csr_array(eye_array(n, dtype=np.float32, format="csr"))
    if cooccurrence:
        targets = csr_array(targets + cooccurrence * cooccurring(points.labels))
    nothing = csr_array((n, n), dtype=np.float32)
    return TrainingRows(
        concatenate(points.texts, label_texts),
        csr_array(vstack([points.labels, targets], format="csr")),
        csr_array(vstack([points.ignored, nothing], format="csr")),
        [*points.uids, *(f"label row {row}" for row in range(n))],
    )


def cooccurring(labels: csr_array) -> csr_array:
    """P(column's label | row's label), (n_labels, n_labels) float32, of points (n, n_labels).

    It is the number of points with both labels over `PRIOR_POINTS` more than the points with the
    row's label, so that a rare label says little. Cells below `LEAST_COOCCURRENCE` are left out, as
    are labels beside themselves.

    >>> cooccurring(csr_array(np.repeat([[1, 1, 0], [0, 1, 1]], [5, 1], axis=0))).toarray().round(2)
    array([[0.  , 0.5 , 0.  ],
           [0.45, 0.  , 0.  ],
           [0.  , 0.17, 0.  ]], dtype=float32)
    """
    has = csr_array(labels > 0, dtype=np.float64)
    shares = csr_array(has.T @ has).tocoo()
    rows, columns = shares.coords
    values = shares.data / (has.sum(axis=0) + PRIOR_POINTS)[rows]
    kept = (rows != columns) & (values >= LEAST_COOCCURRENCE)
    cells = (values[kept].astype(np.float32), (rows[kept], columns[kept]))
    return csr_array(cells, shape=shares.shape)


def cells_of(matrix: csr_array, batch: NDArray[np.int64]) -> Cells:
    """Stored cells of the matrix rows `batch` (n,); their `rows` count from 0 within the batch."""
    counts = matrix.indptr[batch + 1] - matrix.indptr[batch]
    rows = np.repeat(np.arange(len(batch)), counts)
    firsts = np.repeat(matrix.indptr[batch] - np.cumsum(counts) + counts, counts)
    places = firsts + np.arange(len(rows))
    return Cells(
        torch.from_numpy(rows),
        torch.from_numpy(matrix.indices[places].astype(np.int64)),
        torch.from_numpy(matrix.data[places].astype(np.float32)),
    )


def targets_at(
    matrix: csr_array, batch: NDArray[np.int64], labels: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Values (n, K) of the cells in the rows `batch` (n,) and columns `labels` (n, K).

    A cell that is not stored is 0.

    >>> matrix = csr_array(np.array([[0, 0.5, 0], [1.0, 0, 0]]))
    >>> targets_at(matrix, np.array([1, 0]), np.array([[2, 0], [1, 2]]))
    array([[0. , 1. ],
           [0.5, 0. ]], dtype=float32)
    """
    cells, n_labels = cells_of(matrix, batch), matrix.shape[1]
    stored_keys = (cells.rows * n_labels + cells.labels).numpy()
    order = np.argsort(stored_keys)
    stored_keys, values = stored_keys[order], cells.values.numpy()[order]
    keys = np.arange(len(batch))[:, None] * n_labels + labels
    if not len(stored_keys):
        return np.zeros(labels.shape, np.float32)
    places = np.minimum(np.searchsorted(stored_keys, keys), len(stored_keys) - 1)
    return np.where(stored_keys[places] == keys, values[places], np.float32(0))
