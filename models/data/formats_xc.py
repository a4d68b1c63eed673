"""Reads and writes the Extreme Classification Repository's filter files, a `row label` pair a line.

Rows and labels count from zero.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.formats_lines import quote, read_lines, write_lines
from models.errors import DataError

Pairs = NDArray[np.int64]  # (m, 2): row, label


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


def _whole(token: bytes) -> int:
    # int() would also read "1_0" and "+1", which the formats do not allow.
    if not token.isdigit():
        raise ValueError(f"{token!r} is not a whole number")
    return int(token)
