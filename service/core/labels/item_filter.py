"""Item id to the label rows that answers about that item leave out: itself, and reciprocal pairs.

Three memory-mapped arrays: `filter.items.npy` holds the items' 64-bit hashes in rising order,
`filter.starts.npy` where each one's rows start (and where the last ones end), `filter.rows.npy` the
rows end to end. A look-up is a binary search; an unknown id costs the same and finds nothing.
Written by `models.seal.release`.
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
    """Read-only view of a bundle's filter. Safe to share by threads."""

    def __init__(self, folder: Path, n_labels: int) -> None:
        """Map the files; raises BundleMismatch where they do not fit each other or the labels."""
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
        """Pairs of an item and a row."""
        return len(self._rows)

    def pairs(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Every pair: the item's hash and the row."""
        return np.repeat(self._items, np.diff(self._starts)), self._rows

    def rows_for(self, item_id: str) -> NDArray[np.int64]:
        """The rows to leave out for an item, rising; empty for one that is not known."""
        wanted = hash_id(item_id)
        place = int(self._items.searchsorted(wanted))
        if place == len(self._items) or self._items[place] != wanted:
            return NO_ROWS
        return self._rows[self._starts[place] : self._starts[place + 1]]


def write_item_filter(
    folder: Path, item_ids: Sequence[str], rows: NDArray[np.integer]
) -> tuple[int, int]:
    """Write the files into `folder` from pairs (one row for each id); returns items and pairs.

    Repeated pairs are stored once.
    """
    return write_hashed_item_filter(folder, hash_ids(item_ids), rows)


def write_hashed_item_filter(
    folder: Path, items: NDArray[np.uint64], rows: NDArray[np.integer]
) -> tuple[int, int]:
    """The same from the items' hashes."""
    if len(items) != len(rows):
        raise ValueError(f"{len(items)} item ids for {len(rows)} rows; give one for each")
    order = np.lexsort((rows, items))
    hashes, kept = items[order], np.asarray(rows, np.int64)[order]
    new = np.ones(len(order), np.bool_)
    new[1:] = (hashes[1:] != hashes[:-1]) | (kept[1:] != kept[:-1])
    items, starts = np.unique(hashes[new], return_index=True)
    kept = kept[new]
    np.save(folder / ITEMS_FILE, items, allow_pickle=False)
    np.save(folder / STARTS_FILE, np.append(starts, len(kept)).astype(np.int64), allow_pickle=False)
    np.save(folder / ROWS_FILE, kept, allow_pickle=False)
    return len(items), len(kept)
