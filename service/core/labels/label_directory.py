"""Label id to row: the ids' 64-bit hashes in rising order, and the row of each.

`labels.hashes.npy` and `labels.hash_rows.npy` are sealed beside labels.jsonl and memory-mapped. A
look-up is a binary search, then the label is read: two ids may share a hash, so the id decides. A
bundle that was sealed without the files gets them in memory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.core.arrays import open_array
from service.core.labels.id_hash import hash_id, hash_ids
from service.core.labels.labels import LabelStore
from service.errors import BundleMismatch

HASHES_FILE: Final = "labels.hashes.npy"
HASH_ROWS_FILE: Final = "labels.hash_rows.npy"


class LabelDirectory:
    """Read-only look-up over a label store. Safe to share by threads."""

    def __init__(
        self, labels: LabelStore, hashes: NDArray[np.uint64], rows: NDArray[np.int64]
    ) -> None:
        self._labels = labels
        self._hashes = hashes
        self._rows = rows

    @classmethod
    def of(cls, labels: LabelStore) -> "LabelDirectory":
        """Hash every id now, in memory: about 3 us a label."""
        return cls(labels, *_sorted([label.label_id for label in labels.scan()]))

    @classmethod
    def open(cls, folder: Path, labels: LabelStore) -> "LabelDirectory":
        """The sealed files, or `of` where there are none; raises BundleMismatch."""
        path = folder / HASHES_FILE
        if not path.is_file():
            return cls.of(labels)
        hashes = open_array(path, np.uint64)
        rows = open_array(folder / HASH_ROWS_FILE, np.int64)
        if not len(hashes) == len(rows) == len(labels):
            raise BundleMismatch(
                f"{path} and {HASH_ROWS_FILE} hold {len(hashes)} and {len(rows)} entries, there "
                f"are {len(labels)} labels"
            )
        if (hashes[1:] < hashes[:-1]).any() or rows.min() < 0 or rows.max() >= len(labels):
            raise BundleMismatch(f"{path} does not rise, or {HASH_ROWS_FILE} names no row")
        return cls(labels, hashes, rows)

    def row_of(self, label_id: str) -> int | None:
        """The row of an id; of one that several rows carry, the first. None if there is none."""
        wanted = hash_id(label_id)
        place = int(self._hashes.searchsorted(wanted))
        while place < len(self._hashes) and self._hashes[place] == wanted:
            row = int(self._rows[place])
            if self._labels[row].label_id == label_id:
                return row
            place += 1
        return None


def write_directory(folder: Path, label_ids: Sequence[str]) -> list[str]:
    """Write both files into `folder`; returns their names."""
    hashes, rows = _sorted(label_ids)
    np.save(folder / HASHES_FILE, hashes, allow_pickle=False)
    np.save(folder / HASH_ROWS_FILE, rows, allow_pickle=False)
    return [HASHES_FILE, HASH_ROWS_FILE]


def _sorted(label_ids: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    hashes = hash_ids(label_ids)
    order = np.argsort(hashes, kind="stable")
    return hashes[order], order.astype(np.int64)
