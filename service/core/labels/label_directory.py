"""Finds the row of a label id by the ids' 64-bit hashes, which rise, and the row of each.

`labels.hashes.npy` and `labels.hash_rows.npy` lie beside labels.jsonl and are memory-mapped. A
look-up is a binary search. Because two ids may share a hash, it then reads the label and compares
the id. If a bundle lacks the files, the directory computes them in memory. A directory of labels
that share an id, or of other labels, is refused: a rule or a removal would miss one of the two.
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
    """Read-only look-up of label ids. Threads may share it."""

    def __init__(
        self, labels: LabelStore, hashes: NDArray[np.uint64], rows: NDArray[np.int64]
    ) -> None:
        self._labels = labels
        self._hashes = hashes
        self._rows = rows

    @classmethod
    def of(cls, labels: LabelStore) -> "LabelDirectory":
        """A directory in memory, in about 3 us a label; raises BundleMismatch."""
        hashes, rows = _sorted(hash_ids(labels.scan_ids()))
        _check_unique(labels, hashes, rows)
        return cls(labels, hashes, rows)

    @classmethod
    def open(cls, folder: Path, labels: LabelStore) -> "LabelDirectory":
        """Map a bundle's files, or call `of` if it has none; raises BundleMismatch.

        Either way it reads every label once.
        """
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
        if not np.array_equal(hash_ids(labels.scan_ids())[rows], hashes):
            raise BundleMismatch(f"{path} and {HASH_ROWS_FILE} are of other labels")
        _check_unique(labels, hashes, rows)
        return cls(labels, hashes, rows)

    def row_of(self, label_id: str) -> int | None:
        """The row of an id; None if no row has it."""
        hashed = hash_id(label_id)
        place = int(self._hashes.searchsorted(hashed))
        while place < len(self._hashes) and self._hashes[place] == hashed:
            row = int(self._rows[place])
            if self._labels[row].label_id == label_id:
                return row
            place += 1
        return None


def write_directory(folder: Path, label_ids: Sequence[str]) -> list[str]:
    """Write both files into `folder`; returns their names."""
    hashes, rows = _sorted(hash_ids(label_ids))
    np.save(folder / HASHES_FILE, hashes, allow_pickle=False)
    np.save(folder / HASH_ROWS_FILE, rows, allow_pickle=False)
    return [HASHES_FILE, HASH_ROWS_FILE]


def _sorted(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    order = np.argsort(hashes, kind="stable")
    return hashes[order], order.astype(np.int64)


def _check_unique(labels: LabelStore, hashes: NDArray[np.uint64], rows: NDArray[np.int64]) -> None:
    """Raise BundleMismatch if two rows have one id, or if a row is missing from `rows`.

    It reads only the labels whose hashes are equal.
    """
    shared = np.flatnonzero(hashes[1:] == hashes[:-1])
    row_of: dict[str, int] = {}
    for row in np.unique(np.concatenate([rows[shared], rows[shared + 1]])).tolist():
        label_id = labels[row].label_id
        if label_id in row_of:
            raise BundleMismatch(
                f"{labels.path}: rows {row_of[label_id]} and {row} have one id, {label_id[:80]!r}: "
                "give every label an id of its own, and seal the bundle again"
            )
        row_of[label_id] = row
    if len(np.unique(rows)) < len(labels):
        raise BundleMismatch(f"{labels.path}: {HASH_ROWS_FILE} names a row twice")
