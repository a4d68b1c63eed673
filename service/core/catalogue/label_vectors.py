"""Where the vector of a label is read, for what compares labels with each other."""

import numpy as np

from service.core.catalogue.snapshot import Snapshot
from service.core.index.augmented import AugmentedIndex
from service.core.index.faiss_index import FaissIndex
from service.core.index.learned_graph import LearnedGraphIndex
from service.core.index.protocol import LabelIndex
from service.core.types import Float32Rows, Int64Rows


def has_vectors(index: LabelIndex) -> bool:
    """Whether an index gives one vector for a label, without reading all of them.

    A label tree has none, and ivf-flat stores them by lists and not by row.
    """
    if isinstance(index, AugmentedIndex):
        return has_vectors(index.labels)
    if isinstance(index, FaissIndex):
        return index.kind != "ivf-flat"
    return isinstance(index, LearnedGraphIndex)


def label_vectors(index: LabelIndex, snapshot: Snapshot | None, rows: Int64Rows) -> Float32Rows:
    """The vectors (n, m, dim) of label rows (n, m), by an index that `has_vectors`.

    Of a label that is no longer in the snapshot they are zeros.
    """
    unique, places = np.unique(rows, return_inverse=True)
    n_base = index.n_rows if snapshot is None else snapshot.n_base
    border = int(unique.searchsorted(n_base))
    vectors = _of_base(index, unique[:border])
    if snapshot is not None and border < len(unique):
        vectors = np.concatenate([vectors, snapshot.delta.vectors_of(unique[border:])])
    return np.asarray(vectors[places.reshape(rows.shape)])


def _of_base(index: LabelIndex, rows: Int64Rows) -> Float32Rows:
    if isinstance(index, AugmentedIndex):
        return _of_base(index.labels, rows)
    if isinstance(index, FaissIndex | LearnedGraphIndex):
        return index.vectors(rows)
    raise ValueError(f"an index of kind {index.kind} keeps no vector for each label")
