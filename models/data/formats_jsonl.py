"""Reads and writes JSON lines with text.

This is the raw-text form of the Extreme Classification Repository. Each line is
`{"uid", "title", "content", "target_ind", "target_rel"}`. `target_ind` holds 0-based line numbers
of the label file. `content` may be absent or null. A `uid` is text and is kept as it stands. A
label must have one of its own, because clients name it by that; a point without one has the empty
uid, which is nobody's. Where a line names a label twice, as real data does, the reader merges and
counts it. Every other fault raises DataError.
"""

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from scipy.sparse import csr_array

from models.data.dataset import LabelCatalogue, Points
from models.data.formats_lines import quote, read_lines, write_lines
from models.errors import DataError
from service.core.labels.label_id import fault_of_id

# A relevance in this range is still finite and above zero as float32.
MIN_RELEVANCE, MAX_RELEVANCE = 1e-37, 1e38


def read_labels(path: Path) -> LabelCatalogue:
    """Read the label catalogue, in the order of its lines. Raises DataError."""
    titles, contents = [], []
    metadata: list[dict[str, Any]] = []
    line_of: dict[str, int] = {}
    for number, record in _records(path):
        uid = _uid(record, path, number, default=None)
        if (fault := fault_of_id(uid)) is not None:
            expected = 'a "uid" that a URL can carry, since clients name the label by it'
            raise DataError(path, number, expected, f"{uid!r}: {fault}")
        if (first := line_of.setdefault(uid, number)) != number:
            expected = 'a "uid" of its own for every label'
            raise DataError(path, number, expected, f"{uid!r} again, as in line {first}")
        titles.append(_text(record, "title", path, number))
        contents.append(_text(record, "content", path, number, default=""))
        metadata.append(_metadata(record, path, number))
    return LabelCatalogue(list(line_of), titles, contents, metadata if any(metadata) else None)


def read_points(path: Path, n_labels: int) -> Points:
    """Read points; their labels are (n_points, n_labels) float32 with sorted rows.

    Raises DataError.
    """
    uids, titles, contents = [], [], []
    targets = _Targets(path, n_labels)
    for number, record in _records(path):
        uids.append(_uid(record, path, number, default=""))
        titles.append(_text(record, "title", path, number))
        contents.append(_text(record, "content", path, number, default=""))
        targets.add(number, record)
    labels, merged = targets.matrix()
    return Points(uids, titles, contents, labels, merged_targets=merged)


def write_labels(path: Path, labels: LabelCatalogue) -> None:
    """Write the catalogue, gzipped where the name ends in .gz."""
    write_lines(
        path,
        (
            orjson.dumps(
                {"uid": uid, "title": title, "content": content}
                | ({"metadata": about} if about else {})
            )
            for uid, title, content, about in zip(
                labels.uids,
                labels.titles,
                labels.contents,
                labels.metadata or [{}] * len(labels),
                strict=True,
            )
        ),
    )


def write_points(path: Path, points: Points) -> None:
    """Write the points, with `target_rel` only where some relevance is not 1.

    Raises ValueError for a relevance out of range.
    """
    relevance = points.labels.data
    if not ((relevance >= MIN_RELEVANCE) & (relevance <= MAX_RELEVANCE)).all():
        raise ValueError(
            f"labels must store numbers from {MIN_RELEVANCE} to {MAX_RELEVANCE}; drop stored zeros"
        )
    graded = bool((relevance != 1.0).any())
    write_lines(path, (_point_line(points, row, graded) for row in range(len(points))))


def _point_line(points: Points, row: int, graded: bool) -> bytes:
    start, stop = points.labels.indptr[row : row + 2]
    record: dict[str, Any] = {
        "uid": points.uids[row],
        "title": points.titles[row],
        "content": points.contents[row],
        "target_ind": points.labels.indices[start:stop].tolist(),
    }
    if graded:
        record["target_rel"] = points.labels.data[start:stop].tolist()
    return orjson.dumps(record)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in read_lines(path):
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as exc:
            _check_utf8(path, number, line)
            raise DataError(path, number, "one JSON object", f"{quote(line)} ({exc})") from exc
        if not isinstance(record, dict):
            raise DataError(path, number, "one JSON object", quote(line))
        if line.count(b'"uid"') > 1:
            _check_one_uid(path, number, line)
        yield number, record


def _check_one_uid(path: Path, number: int, line: bytes) -> None:
    """Raise DataError where an object has two uids, of which parsers keep the last in silence."""
    pairs = json.loads(line, object_pairs_hook=list)
    if [name for name, _ in pairs].count("uid") > 1:
        raise DataError(path, number, 'one "uid"', quote(line))


def _check_utf8(path: Path, number: int, line: bytes) -> None:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise DataError(path, number, "UTF-8 text", quote(line)) from exc


def _uid(record: dict[str, Any], path: Path, number: int, default: str | None) -> str:
    uid = record.get("uid", default)
    if isinstance(uid, str):
        return uid
    expected = 'a "uid" that is text, in quotes'
    raise DataError(path, number, expected, _show(record, "uid"))


def _text(
    record: dict[str, Any], key: str, path: Path, number: int, default: str | None = None
) -> str:
    text = record.get(key)
    if isinstance(text, str):
        return text
    if text is None and default is not None:
        return default
    raise DataError(path, number, f'a "{key}" that is text', _show(record, key))


def _metadata(record: dict[str, Any], path: Path, number: int) -> dict[str, Any]:
    """What a table said of a label beside its text; empty where it says nothing."""
    metadata = record.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise DataError(path, number, 'a "metadata" that is an object', _show(record, "metadata"))
    return metadata


def _show(record: dict[str, Any], key: str) -> str:
    return repr(record[key]) if key in record else f'no "{key}"'


@dataclass(slots=True)
class _Targets:
    """Collects the target lists of a file, in flat arrays as there may be a hundred million."""

    path: Path
    n_labels: int
    columns: "array[int]" = field(default_factory=lambda: array("q"))
    values: "array[float]" = field(default_factory=lambda: array("f"))
    ends: "array[int]" = field(default_factory=lambda: array("q", [0]))

    def add(self, number: int, record: dict[str, Any]) -> None:
        columns = record.get("target_ind")
        if not isinstance(columns, list) or not {*map(type, columns)} <= {int}:
            expected = 'a "target_ind" that is a list of whole numbers'
            raise DataError(self.path, number, expected, _show(record, "target_ind"))
        if columns and not (min(columns) >= 0 and max(columns) < self.n_labels):
            expected = f'"target_ind" from 0 to {self.n_labels - 1} (line numbers of the labels)'
            raise DataError(self.path, number, expected, repr(columns))
        self.columns.extend(columns)
        self.values.extend(self._relevance(number, record, len(columns)))
        self.ends.append(len(self.columns))

    def _relevance(self, number: int, record: dict[str, Any], n_columns: int) -> list[float]:
        values = record.get("target_rel")
        if values is None:
            return [1.0] * n_columns
        if (
            not isinstance(values, list)
            or len(values) != n_columns
            or not {*map(type, values)} <= {int, float}
            or not all(MIN_RELEVANCE <= value <= MAX_RELEVANCE for value in values)
        ):
            expected = (
                f'a "target_rel" of {n_columns} numbers, one for each of "target_ind", '
                f"from {MIN_RELEVANCE} to {MAX_RELEVANCE}"
            )
            raise DataError(self.path, number, expected, _show(record, "target_rel"))
        return values

    def matrix(self) -> tuple[csr_array, int]:
        """The label matrix and the number of repeats that were merged into it."""
        ends = np.array(self.ends, dtype=np.int64)
        columns = np.array(self.columns, dtype=np.int64)
        values = np.array(self.values, dtype=np.float32)
        rows = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
        # Sort by row, then by column, and put the largest relevance of a repeated label first.
        order = np.lexsort((-values, columns, rows))
        rows, columns, values = rows[order], columns[order], values[order]
        first = np.ones(len(rows), dtype=bool)
        first[1:] = (rows[1:] != rows[:-1]) | (columns[1:] != columns[:-1])
        row_ends = np.searchsorted(rows[first], np.arange(len(ends)))
        shape = (len(ends) - 1, self.n_labels)
        labels = csr_array((values[first], columns[first], row_ends), shape=shape)
        return labels, int((~first).sum())
