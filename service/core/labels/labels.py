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
from numpy.typing import NDArray

from service.bundle.plain_files import open_plain
from service.core.arrays import open_array
from service.errors import BundleMismatch, FileCorrupt, FileMissing

LABELS_FILE: Final = "labels.jsonl"
OFFSETS_FILE: Final = "labels.offsets.npy"
CACHED_LABELS: Final = 65536
"""Parsed labels kept: answers repeat the popular ones, and ten parses cost as much as a search."""

PARSED_AT_ONCE: Final = 512
"""Labels in one parse: more at once no longer fit a processor's cache, and take longer."""


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
        self._path = folder / LABELS_FILE
        offsets = self._offsets = open_array(folder / OFFSETS_FILE, np.int64)
        try:
            with open_plain(self._path) as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileCorrupt, FileMissing, ValueError) as exc:  # an empty file cannot be mapped
            raise BundleMismatch(f"{self._path} cannot be mapped: {exc}") from exc
        size = len(self._bytes)
        if (
            len(offsets) < 2
            or (offsets[0], offsets[-1]) != (0, size)
            or (offsets[1:] <= offsets[:-1]).any()
        ):
            raise BundleMismatch(
                f"{folder / OFFSETS_FILE} does not describe {self._path} ({size} bytes)"
            )
        self._cached = lru_cache(CACHED_LABELS)(self._read)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> Label:
        return self._cached(row)

    def scan(self) -> Iterator[Label]:
        """Every label in row order, past the cache: for one pass over all of them."""
        return (self._read(row) for row in range(len(self)))

    def scan_metadata(self) -> Iterator[dict[str, Any]]:
        """Every label's metadata in row order, hundreds parsed at once: twice as fast as `scan`.

        Raises BundleMismatch.
        """
        for start in range(0, len(self), PARSED_AT_ONCE):
            offsets = self._offsets[start : start + PARSED_AT_ONCE + 1]
            yield from self._metadata_of(start, self._bytes[offsets[0] : offsets[-1]], offsets)

    def _metadata_of(
        self, start: int, lines: bytes, offsets: NDArray[np.int64]
    ) -> list[dict[str, Any]]:
        ends = np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n")) + 1 + offsets[0]
        if np.array_equal(ends, offsets[1:]):
            try:
                found = orjson.loads(b"[" + lines[:-1].replace(b"\n", b",") + b"]")
                metadata = [raw.get("metadata") or {} for raw in found]
            except (ValueError, AttributeError):
                metadata = []
            if len(metadata) == len(ends) and set(map(type, metadata)) == {dict}:
                return metadata
        # One by one, for the sentence that names the row.
        metadata = [self._read(start + i).metadata or {} for i in range(len(offsets) - 1)]
        for i, one in enumerate(metadata):
            if not isinstance(one, dict):
                raise BundleMismatch(f"{self._path}: row {start + i}: metadata must be an object")
        return metadata

    def _read(self, row: int) -> Label:
        line = self._bytes[self._offsets[row] : self._offsets[row + 1]]
        try:
            raw = orjson.loads(line)
            label = Label(raw["id"], raw["text"], raw.get("metadata", {}))
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise BundleMismatch(f"{self._path}: row {row} is no label: {exc}") from exc
        if not (isinstance(label.label_id, str) and isinstance(label.text, str)):
            raise BundleMismatch(f"{self._path}: row {row}: id and text must be texts")
        return label


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
