"""Finds the label of a row in a memory-mapped JSON-lines file, by a table of offsets.

`labels.jsonl` holds one `{"id", "text", "metadata"?}` object a line, in row order; any tool can
read it. `labels.offsets.npy` holds n + 1 byte offsets (int64). A row is one slice of the map, so
the system reads only the pages of labels that somebody looks up.
"""

import mmap
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from service.bundle.plain_files import open_plain
from service.core.arrays import open_array
from service.errors import BundleMismatch, FileCorrupt, FileMissing

LABELS_FILE: Final = "labels.jsonl"
OFFSETS_FILE: Final = "labels.offsets.npy"
CACHED_LABELS: Final = 65536
"""Parsed labels in the cache: answers repeat popular labels, and ten parses take as long as a
search. A choice: more labels take more memory."""

PARSED_AT_ONCE: Final = 512
"""Labels in one parse: more no longer fit a processor's cache and take longer."""


@dataclass(frozen=True, slots=True)
class Label:
    """One label as users see it; `label_id` is the `uid` of the training data."""

    label_id: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


class LabelStore:
    """Read-only list of a bundle's labels by row. Threads may share it.

    Reading a label raises BundleMismatch if its line is no label.
    """

    def __init__(self, folder: Path) -> None:
        """Map the two files; raises BundleMismatch if they do not belong together."""
        self.path = folder / LABELS_FILE
        offsets = self._offsets = open_array(folder / OFFSETS_FILE, np.int64)
        try:
            with open_plain(self.path) as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileCorrupt, FileMissing, ValueError) as exc:  # an empty file cannot be mapped
            raise BundleMismatch(f"{self.path} cannot be mapped: {exc}") from exc
        size = len(self._bytes)
        if (
            len(offsets) < 2
            or (offsets[0], offsets[-1]) != (0, size)
            or (offsets[1:] <= offsets[:-1]).any()
        ):
            raise BundleMismatch(
                f"{folder / OFFSETS_FILE} does not describe {self.path} ({size} bytes)"
            )
        self._cached = lru_cache(CACHED_LABELS)(self._read)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> Label:
        return self._cached(row)

    def scan(self) -> Iterator[Label]:
        """All labels in row order; the pass does not fill the cache."""
        return (self._read(row) for row in range(len(self)))

    def scan_ids(self) -> Iterator[str]:
        """The ids of all labels in row order, about as fast as `scan_metadata`.

        Raises BundleMismatch if a line is no label.
        """
        for start, records in self._scan_records():
            for row, raw in enumerate(records, start):
                if not _is_label(raw):
                    self._read(row)  # which raises, and says what is wrong
                yield raw["id"]

    def scan_metadata(self) -> Iterator[dict[str, Any]]:
        """The metadata of all labels in row order; raises BundleMismatch.

        It parses hundreds of lines at once and is twice as fast as `scan`.
        """
        for start, records in self._scan_records():
            metadata = [raw.get("metadata") or {} for raw in records]
            if set(map(type, metadata)) != {dict}:
                row = next(i for i, one in enumerate(metadata) if not isinstance(one, dict))
                raise BundleMismatch(f"{self.path}: row {start + row}: metadata must be an object")
            yield from metadata

    def _scan_records(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """The objects of hundreds of lines at once, each time with the first one's row."""
        for start in range(0, len(self), PARSED_AT_ONCE):
            offsets = self._offsets[start : start + PARSED_AT_ONCE + 1]
            lines = self._bytes[offsets[0] : offsets[-1]]
            ends = np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n")) + 1 + offsets[0]
            records: list[Any] = []
            if np.array_equal(ends, offsets[1:]):
                with suppress(ValueError):
                    records = orjson.loads(b"[" + lines[:-1].replace(b"\n", b",") + b"]")
            if len(records) != len(ends) or set(map(type, records)) != {dict}:
                # Something is wrong: parse line by line, so that the error names the row.
                labels = [self._read(start + i) for i in range(len(offsets) - 1)]
                records = [
                    {"id": one.label_id, "text": one.text, "metadata": one.metadata}
                    for one in labels
                ]
            yield start, records

    def _read(self, row: int) -> Label:
        line = self._bytes[self._offsets[row] : self._offsets[row + 1]]
        try:
            raw = orjson.loads(line)
            label = Label(raw["id"], raw["text"], raw.get("metadata", {}))
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise BundleMismatch(f"{self.path}: row {row} is not a label: {exc}") from exc
        if not (isinstance(label.label_id, str) and isinstance(label.text, str)):
            raise BundleMismatch(f"{self.path}: row {row}: id and text must be texts")
        if not isinstance(label.metadata, dict):
            raise BundleMismatch(f"{self.path}: row {row}: metadata must be an object")
        return label


def _is_label(raw: dict[str, Any]) -> bool:
    return (
        type(raw.get("id")) is str
        and type(raw.get("text")) is str
        and type(raw.get("metadata", {})) is dict
    )


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
