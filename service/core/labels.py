"""Row to label: a memory-mapped JSON-lines file with an offset table beside it.

`labels.jsonl` holds one `{"id", "text", "metadata"?}` object a line, in row order; any tool reads
it. `labels.offsets.npy` holds n + 1 byte offsets (int64), so that a row is one slice of the map and
pages that nobody asks for are never read.
"""

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from service.errors import BundleMismatch

LABELS_FILE: Final = "labels.jsonl"
OFFSETS_FILE: Final = "labels.offsets.npy"
CACHED_LABELS: Final = 65536
"""Parsed labels kept: answers repeat the popular ones, and ten parses cost as much as a search."""


@dataclass(frozen=True, slots=True)
class Label:
    """One label as a user sees it; `label_id` is the `uid` of the training data."""

    label_id: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


class LabelStore:
    """Read-only view of the labels of a bundle. Safe to share by threads."""

    def __init__(self, folder: Path) -> None:
        """Map the two files; raises BundleMismatch where they do not belong together."""
        offsets = np.load(folder / OFFSETS_FILE, mmap_mode="r", allow_pickle=False)
        # as a plain array: np.memmap's own __getitem__ costs five times as much
        self._offsets = np.asarray(offsets)
        size = (folder / LABELS_FILE).stat().st_size
        if (
            offsets.dtype != np.int64
            or offsets.ndim != 1
            or len(offsets) < 2
            or offsets[-1] != size
        ):
            raise BundleMismatch(
                f"{folder / OFFSETS_FILE} does not describe {folder / LABELS_FILE} ({size} bytes)"
            )
        with (folder / LABELS_FILE).open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._cached = lru_cache(CACHED_LABELS)(self._read)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> Label:
        return self._cached(row)

    def scan(self) -> Iterator[Label]:
        """Every label in row order, past the cache: for one pass over all of them."""
        return (self._read(row) for row in range(len(self)))

    def _read(self, row: int) -> Label:
        raw = orjson.loads(self._bytes[self._offsets[row] : self._offsets[row + 1]])
        return Label(raw["id"], raw["text"], raw.get("metadata", {}))


def write_labels(folder: Path, labels: Iterable[Label]) -> list[str]:
    """Write both files into `folder`; returns their names."""
    offsets = [0]
    with (folder / LABELS_FILE).open("wb") as file:
        for label in labels:
            record: dict[str, Any] = {"id": label.label_id, "text": label.text}
            if label.metadata:
                record["metadata"] = label.metadata
            offsets.append(offsets[-1] + file.write(orjson.dumps(record) + b"\n"))
    np.save(folder / OFFSETS_FILE, np.asarray(offsets, np.int64), allow_pickle=False)
    return [LABELS_FILE, OFFSETS_FILE]
