"""Reads and writes the Extreme Classification Repository's sparse text formats and filter files.

There are three layouts: the old single file of features and labels, the newer split files of one
matrix each, and filter files of `row label` pairs. Rows and columns count from zero. Values are
float64; the writer gives the fewest digits that read back as the same number. In the first two
layouts a blank line is a row without entries, so the reader checks the header's number of rows;
blank lines after so many are left out.
"""

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.data.formats_lines import quote, read_lines, write_lines
from models.errors import DataError

Pairs = NDArray[np.int64]  # (m, 2): row, label


def read_sparse(path: Path) -> csr_array:
    """Read a split file (`trn_X_Xf.txt`, `trn_X_Y.txt`, ...): a header `rows cols`, then the rows.

    Raises DataError.
    """
    lines = read_lines(path, blank_rows=True)
    n_rows, n_columns = _read_header(path, lines, "rows cols")
    rows = _Rows(path, n_columns, "column")
    for number, line in _without_blank_end(lines, n_rows):
        rows.add_pairs(number, line)
    return rows.matrix(n_rows)


def write_sparse(path: Path, matrix: csr_array) -> None:
    """Write a split file that `read_sparse` reads as the same matrix.

    Raises ValueError for a value that is not finite.
    """
    matrix = _writable(matrix)
    header = "{} {}".format(*matrix.shape)
    write_lines(path, [header.encode(), *_pair_lines(matrix)])


def read_bow(path: Path) -> tuple[csr_array, csr_array]:
    """Read the old single file into features (n, n_features) and labels (n, n_labels).

    A line is `label,label feature:value ...`; that of a point without labels starts with a space.
    Raises DataError.
    """
    lines = read_lines(path, blank_rows=True)
    n_rows, n_features, n_labels = _read_header(path, lines, "num_points num_features num_labels")
    features = _Rows(path, n_features, "feature")
    labels = _Rows(path, n_labels, "label")
    for number, line in _without_blank_end(lines, n_rows):
        targets, _, pairs = line.partition(b" ")
        labels.add_list(number, targets)
        features.add_pairs(number, pairs)
    return features.matrix(n_rows), labels.matrix(n_rows).astype(np.float32)


def write_bow(path: Path, features: csr_array, labels: csr_array) -> None:
    """Write the old single file, without the labels' values, which the format has no place for.

    Raises ValueError for different numbers of rows and for a value that is not finite.
    """
    if features.shape[0] != labels.shape[0]:
        raise ValueError(
            f"features has {features.shape[0]} rows and labels {labels.shape[0]}; give one each "
            "per point"
        )
    features, labels = _writable(features), _writable(labels)
    header = f"{features.shape[0]} {features.shape[1]} {labels.shape[1]}"
    ends = labels.indptr
    targets = (
        ",".join(map(str, labels.indices[start:stop].tolist())).encode()
        for start, stop in pairwise(ends)
    )
    lines = (b" ".join(both) for both in zip(targets, _pair_lines(features), strict=True))
    write_lines(path, [header.encode(), *lines])


def read_filter(path: Path, n_rows: int, n_labels: int) -> Pairs:
    """Read the (m, 2) `row label` pairs of a filter file, which may be empty. Raises DataError."""
    flat: list[int] = []
    for number, line in read_lines(path):
        try:
            row, label = (_whole(token) for token in line.split())
        except ValueError:
            raise DataError(path, number, "two whole numbers, row label", quote(line)) from None
        if not (0 <= row < n_rows and 0 <= label < n_labels):
            expected = f"a row from 0 to {n_rows - 1} and a label from 0 to {n_labels - 1}"
            raise DataError(path, number, expected, quote(line))
        flat += (row, label)
    return np.array(flat, dtype=np.int64).reshape(-1, 2)


def write_filter(path: Path, pairs: Pairs) -> None:
    """Write one pair a line, in their order."""
    write_lines(path, (f"{row} {label}".encode() for row, label in pairs.tolist()))


def _read_header(path: Path, lines: Iterator[tuple[int, bytes]], names: str) -> list[int]:
    _, line = next(lines, (1, b""))
    try:
        sizes = [_whole(token) for token in line.split()]
    except ValueError:
        sizes = []
    if len(sizes) != len(names.split()) or min(sizes) < 0:
        raise DataError(path, 1, f"a header of whole numbers, {names}", quote(line))
    return sizes


def _without_blank_end(
    lines: Iterator[tuple[int, bytes]], n_rows: int
) -> Iterator[tuple[int, bytes]]:
    for place, (number, line) in enumerate(lines):
        if place < n_rows or line.strip():
            yield number, line


def _whole(token: bytes) -> int:
    # int() would also read "1_0" and "+1", which the formats do not allow.
    if not token.isdigit():
        raise ValueError(f"{token!r} is not a whole number")
    return int(token)


def _parse_pairs(line: bytes) -> tuple[list[int], list[float]]:
    if b"_" in line:  # float() would read "1_0"
        raise ValueError("underscore in a number")
    halves = [token.split(b":") for token in line.split()]
    return [_whole(column) for column, _ in halves], [float(value) for _, value in halves]


@dataclass(slots=True)
class _Rows:
    """Collects the rows of one matrix and checks each; `what` names its columns in errors."""

    path: Path
    n_columns: int
    what: str
    columns: "array[int]" = field(default_factory=lambda: array("q"))
    values: "array[float]" = field(default_factory=lambda: array("d"))
    ends: "array[int]" = field(default_factory=lambda: array("q", [0]))

    def add_pairs(self, number: int, line: bytes) -> None:
        """Add a row from a line of `column:value` pairs."""
        try:
            columns, values = _parse_pairs(line)
        except ValueError:
            expected = f"{self.what}:number pairs with blanks between"
            raise DataError(self.path, number, expected, quote(line)) from None
        if not all(map(math.isfinite, values)):
            raise DataError(self.path, number, "finite numbers only", quote(line))
        self._add(number, columns, values)

    def add_list(self, number: int, line: bytes) -> None:
        """Add a row from a list of columns with commas between; each value is 1."""
        try:
            columns = [_whole(column) for column in line.split(b",")] if line else []
        except ValueError:
            expected = f"{self.what}s with commas between, or a blank where there is none"
            raise DataError(self.path, number, expected, quote(line)) from None
        self._add(number, columns, [1.0] * len(columns))

    def _add(self, number: int, columns: list[int], values: list[float]) -> None:
        if columns and max(columns) >= self.n_columns:
            expected = f"{self.what}s from 0 to {self.n_columns - 1}, as the header says"
            raise DataError(self.path, number, expected, str(max(columns)))
        if len(set(columns)) < len(columns):
            expected = f"every {self.what} once in a row"
            repeat = next(column for column in columns if columns.count(column) > 1)
            raise DataError(self.path, number, expected, f"{repeat} again")
        self.columns.extend(columns)
        self.values.extend(values)
        self.ends.append(len(self.columns))

    def matrix(self, n_rows: int) -> csr_array:
        """The matrix with sorted rows. Raises DataError where the header says another number."""
        n_lines = len(self.ends) - 1
        if n_lines != n_rows:
            expected = f"{n_rows} lines after the header, as it says"
            raise DataError(self.path, n_lines + 1, expected, f"{n_lines}")
        parts = (np.array(self.values), np.array(self.columns), np.array(self.ends))
        matrix = csr_array(parts, shape=(n_rows, self.n_columns), dtype=np.float64)
        matrix.sort_indices()
        return matrix


def _writable(matrix: csr_array) -> csr_array:
    """A copy with sorted rows and repeats summed. Raises ValueError for NaN and infinity."""
    matrix = csr_array(matrix, dtype=np.float64, copy=True)
    matrix.sum_duplicates()
    if not np.isfinite(matrix.data).all():
        raise ValueError("the matrix holds NaN or infinity; the text formats have no place for it")
    return matrix


def _pair_lines(matrix: csr_array) -> Iterator[bytes]:
    for start, stop in pairwise(matrix.indptr):
        columns, values = matrix.indices[start:stop].tolist(), matrix.data[start:stop].tolist()
        # repr() is the shortest text that reads back as the same float64.
        pairs = zip(columns, map(repr, values), strict=True)
        yield " ".join(f"{column}:{value.removesuffix('.0')}" for column, value in pairs).encode()
