"""The labels of the memory's training queries: three memory-mapped arrays, in sparse row form.

`models.index.memory` writes them, `service.core.index.augmented` reads them. They do not say which
training query a row is: the service needs only its embedding, which the memory's index holds, and
its labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.core.arrays import open_array
from service.errors import BundleMismatch


@dataclass(frozen=True, slots=True)
class MemoryLabels:
    """Row j of the memory has `labels[offsets[j]:offsets[j + 1]]`, with `values` in [0, 1]."""

    offsets: NDArray[np.int64]
    labels: NDArray[np.int32]
    values: NDArray[np.float32]


def open_memory_labels(paths: Sequence[Path], n_rows: int, n_labels: int) -> MemoryLabels:
    """Map offsets, labels and values, in this order; raises BundleMismatch if they do not fit.

    It checks every label row and every value, so that searches need not.
    """
    offsets_path, labels_path, values_path = paths
    offsets = open_array(offsets_path, np.int64)
    if len(offsets) != n_rows + 1:
        raise BundleMismatch(
            f"{offsets_path} describes {len(offsets) - 1} rows, the manifest says memory.n_rows "
            f"{n_rows}"
        )
    if offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise BundleMismatch(f"{offsets_path}: expected offsets that rise from 0")
    labels, values = open_array(labels_path, np.int32), open_array(values_path, np.float32)
    for path, array in ((labels_path, labels), (values_path, values)):
        if len(array) != offsets[-1]:
            raise BundleMismatch(
                f"{path} has {len(array)} entries, {offsets_path} ends at {offsets[-1]}"
            )
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= n_labels:
        raise BundleMismatch(
            f"{labels_path} names label rows {labels.min()} to {labels.max()}, the index has "
            f"{n_labels}"
        )
    if not ((values >= 0) & (values <= 1)).all():
        raise BundleMismatch(f"{values_path} holds values outside [0, 1]")
    return MemoryLabels(offsets, labels, values)
