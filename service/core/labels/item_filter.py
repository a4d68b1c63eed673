"""Finds the label rows that answers about an item leave out: its own label and reciprocal pairs.

It is three memory-mapped arrays. `filter.items.npy` holds the items' 64-bit hashes, rising.
`filter.starts.npy` says where the rows of each item start, with one more entry for the end.
`filter.rows.npy` holds all rows one after the other. A look-up is a binary search. Two item ids
with the same hash share their rows. `models.seal.release` writes the files.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.core.arrays import open_array
from service.core.labels.id_hash import hash_id, hash_ids
from service.errors import BundleMismatch

ITEMS_FILE: Final = "filter.items.npy"
STARTS_FILE: Final = "filter.starts.npy"
ROWS_FILE: Final = "filter.rows.npy"
NO_ROWS: Final = np.empty(0, np.int64)


class ItemFilter:
    """Read-only view of a bundle's item filter. Threads may share it; its length counts items."""

    def __init__(self, folder: Path, n_labels: int) -> None:
        """Map the files; raises BundleMismatch if they contradict each other or the labels."""
        self._items = open_array(folder / ITEMS_FILE, np.dtype(np.uint64))
        self._starts = open_array(folder / STARTS_FILE, np.dtype(np.int64))
        self._rows = open_array(folder / ROWS_FILE, np.dtype(np.int64))
        if (self._items[1:] <= self._items[:-1]).any():
            raise BundleMismatch(f"{folder / ITEMS_FILE}: the items do not rise, or one is twice")
        n_rows, starts = len(self._rows), self._starts
        if (
            len(starts) != len(self._items) + 1
            or (starts[0], starts[-1]) != (0, n_rows)
            or (starts[1:] < starts[:-1]).any()
        ):
            raise BundleMismatch(
                f"{folder / STARTS_FILE} does not describe {len(self._items)} items of "
                f"{ITEMS_FILE} with {n_rows} rows"
            )
        if n_rows and not (self._rows.min() >= 0 and self._rows.max() < n_labels):
            raise BundleMismatch(f"{folder / ROWS_FILE} names rows outside the {n_labels} labels")

    def __len__(self) -> int:
        return len(self._items)

    @property
    def n_pairs(self) -> int:
        """Number of (item, row) pairs."""
        return len(self._rows)

    def pairs(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Every pair, as the items' hashes (n_pairs,) and the rows (n_pairs,)."""
        return np.repeat(self._items, np.diff(self._starts)), self._rows

    def rows_for(self, item_id: str) -> NDArray[np.int64]:
        """The rows to leave out for an item, rising; empty for an unknown item."""
        hashed = hash_id(item_id)
        place = int(self._items.searchsorted(hashed))
        if place == len(self._items) or self._items[place] != hashed:
            return NO_ROWS
        return self._rows[self._starts[place] : self._starts[place + 1]]


def write_item_filter(
    folder: Path, item_ids: Sequence[str], rows: NDArray[np.integer]
) -> tuple[int, int]:
    """Write the files into `folder` from pairs of `item_ids[i]` and `rows[i]`.

    Returns the numbers of items and of pairs. Repeated pairs are stored once. Raises ValueError if
    the two lists differ in length.
    """
    return write_hashed_item_filter(folder, hash_ids(item_ids), rows)


def write_hashed_item_filter(
    folder: Path, items: NDArray[np.uint64], rows: NDArray[np.integer]
) -> tuple[int, int]:
    """Like `write_item_filter`, with hashes in place of ids."""
    if len(items) != len(rows):
        raise ValueError(f"{len(items)} item ids for {len(rows)} rows; give one for each")
    order = np.lexsort((rows, items))
    hashes, pair_rows = items[order], np.asarray(rows, np.int64)[order]
    new = np.ones(len(order), np.bool_)
    new[1:] = (hashes[1:] != hashes[:-1]) | (pair_rows[1:] != pair_rows[:-1])
    items, starts = np.unique(hashes[new], return_index=True)
    pair_rows = pair_rows[new]
    starts = np.append(starts, len(pair_rows)).astype(np.int64)
    np.save(folder / ITEMS_FILE, items, allow_pickle=False)
    np.save(folder / STARTS_FILE, starts, allow_pickle=False)
    np.save(folder / ROWS_FILE, pair_rows, allow_pickle=False)
    return len(items), len(pair_rows)
