"""Makes points of a table's rows: one row a text with several labels, or one row a pair.

Where a text's labels are a list, or one text with separators, each row is a point. Where each row
has one label, rows of one text are gathered to a point and their weights added up, as a click log
needs it. Whole columns are handled at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from models.data.formats_jsonl import MAX_RELEVANCE, MIN_RELEVANCE
from models.data.tables.columns import Columns
from models.errors import TableError

if TYPE_CHECKING:
    import pyarrow as pa

SEPARATORS: Final = ("|", ";", "\t", ",")
"""What may stand between labels, the most usual first."""

_SAMPLE: Final = 10_000
"""Rows that the separator is guessed from. A choice."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one part: texts, and pairs of a row and a label's name with a weight."""

    path: Path
    texts: list[str]
    contents: list[str]
    ids: list[str]
    times: NDArray[np.int64] | None
    pair_rows: NDArray[np.int64]
    pair_names: "pa.Array"
    pair_weights: NDArray[np.float32] | None
    is_pairs: bool

    def __len__(self) -> int:
        return len(self.texts)


def rows_of(path: Path, table: "pa.Table", columns: Columns, separator: str) -> Rows:
    """The rows of a table. Raises TableError, which names row and column."""
    names, rows, one_each = _labels(path, table[columns.labels], columns.labels, separator)
    weights = _weights(path, table, columns.weight)
    return Rows(
        path,
        _texts(path, table, columns.text),
        _texts(path, table, columns.content) if columns.content else [""] * table.num_rows,
        _texts(path, table, columns.id) if columns.id else [""] * table.num_rows,
        _times(path, table, columns.time),
        rows,
        names,
        None if weights is None else weights[rows],
        one_each,
    )


def gathered(rows: Rows) -> tuple[Rows, int]:
    """The rows with those of one text made one, in order of appearance; and how many went."""
    places: dict[tuple[str, str], int] = {}
    of_row = np.fromiter(
        (
            places.setdefault(pair, len(places))
            for pair in zip(rows.texts, rows.contents, strict=True)
        ),
        np.int64,
        len(rows),
    )
    first = np.unique(of_row, return_index=True)[1]
    times = rows.times
    if times is not None:  # a text is as old as its last event
        latest = np.full(len(first), np.iinfo(np.int64).min)
        np.maximum.at(latest, of_row, times)
        times = latest
    gathered_rows = Rows(
        rows.path,
        [rows.texts[row] for row in first],
        [rows.contents[row] for row in first],
        [rows.ids[row] for row in first],
        times,
        of_row[rows.pair_rows],
        rows.pair_names,
        rows.pair_weights,
        True,
    )
    return gathered_rows, len(rows) - len(first)


def label_matrix(rows: Rows, columns: NDArray[np.int64], n_labels: int) -> tuple[csr_array, int]:
    """(n_rows, n_labels) float32 with sorted rows, and how many repeats of a label were merged.

    `columns` has the label of each pair, -1 for one to leave out.
    """
    known = columns >= 0
    weights = np.ones(len(columns), np.float32)
    if rows.pair_weights is not None:
        weights = rows.pair_weights
    pairs = coo_array(
        (weights[known], (rows.pair_rows[known], columns[known])), shape=(len(rows), n_labels)
    )
    matrix = csr_array(pairs)
    matrix.sum_duplicates()
    n_merged = int(known.sum()) - matrix.nnz
    if rows.pair_weights is None:
        matrix.data[:] = 1.0
    matrix.sort_indices()
    return matrix, n_merged


def _labels(
    path: Path, column: "pa.ChunkedArray", name: str, separator: str
) -> tuple["pa.Array", NDArray[np.int64], bool]:
    """The names of all labels, the row of each, and whether each row has one label by its form."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = column.combine_chunks()
    kind, one_each = array.type, False
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        array = _as_text(path, array, name)
        one_each = not separator
        lists = pc.split_pattern(array, pattern=separator) if separator else None
    else:
        lists = array
    if lists is None:
        names, rows = array, np.arange(len(array))
    else:
        names = _as_text(path, pc.list_flatten(lists), name)
        rows = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    names = pc.utf8_trim_whitespace(names)
    there = pc.fill_null(pc.greater(pc.utf8_length(names), 0), False)
    mask = there.to_numpy(zero_copy_only=False)
    return names.filter(there), rows[mask], one_each


def separator_of(table: "pa.Table", name: str, separator: str) -> str:
    """What separates the labels in a column: as given, or guessed; empty for lists and pairs."""
    import pyarrow as pa

    kind = table[name].type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return ""
    if separator or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return separator
    return guess_separator(table[name].slice(0, _SAMPLE).to_pylist())


def guess_separator(values: Sequence[str | None]) -> str:
    """What separates labels in these values; empty where each is one label.

    >>> guess_separator(["Whales|Sea", "Sea"]), guess_separator(["Smith, John", "Doe, Jane"])
    ('|', '')
    """
    texts = [value for value in values if value]
    for separator in SEPARATORS:
        holders = [text for text in texts if separator in text]
        if not holders:
            continue
        parts = [part.strip() for text in holders for part in text.split(separator)]
        # In lists the same labels come again; the parts of names with commas do not.
        if separator in "|;\t" or len(set(parts)) <= 0.7 * len(parts):
            return separator
    return ""


def _as_text(path: Path, array: Any, name: str) -> Any:
    import pyarrow as pa

    kind = array.type
    if pa.types.is_null(kind):
        return array.cast(pa.string())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind):
        return array.cast(pa.string())
    if pa.types.is_dictionary(kind):
        return _as_text(path, array.dictionary_decode(), name)
    raise TableError(path, None, name, "texts or whole numbers", str(kind))


def _texts(path: Path, table: "pa.Table", name: str) -> list[str]:
    array = _as_text(path, table[name].combine_chunks(), name)
    return ["" if value is None else value for value in array.to_pylist()]


def _weights(path: Path, table: "pa.Table", name: str) -> NDArray[np.float32] | None:
    if not name:
        return None
    values = _numbers(path, table, name)
    bad = ~((values >= MIN_RELEVANCE) & (values <= MAX_RELEVANCE))
    if bad.any():
        row = int(np.argmax(bad))
        expected = f"a weight from {MIN_RELEVANCE} to {MAX_RELEVANCE}"
        raise TableError(path, row + 1, name, expected, repr(float(values[row])))
    return values.astype(np.float32)


def _numbers(path: Path, table: "pa.Table", name: str) -> NDArray[np.float64]:
    import pyarrow as pa

    array = table[name].combine_chunks()
    try:
        return np.asarray(array.cast(pa.float64()).fill_null(np.nan))
    except pa.ArrowException:
        row, value = _first_bad(array, pa.float64())
        raise TableError(path, row, name, "a number", repr(value)) from None


def _times(path: Path, table: "pa.Table", name: str) -> NDArray[np.int64] | None:
    """Times as microseconds of one clock; whole numbers stay what they are."""
    import pyarrow as pa

    if not name:
        return None
    array = table[name].combine_chunks()
    try:
        if not pa.types.is_integer(array.type):
            array = array.cast(pa.timestamp("us")).cast(pa.int64())
        if array.null_count:
            raise pa.ArrowInvalid("null")
        return np.asarray(array.cast(pa.int64()))
    except pa.ArrowException:
        row, value = _first_bad(array, pa.timestamp("us"))
        raise TableError(
            path,
            row,
            name,
            "a time in ISO 8601, such as 2026-12-01 or 2026-12-01T08:30:00",
            repr(value),
        ) from None


def _first_bad(array: Any, kind: Any) -> tuple[int, Any]:
    """The first row (from 1) that is null or cannot be cast, and its value."""
    import pyarrow as pa

    for row in range(len(array)):
        one = array.slice(row, 1)
        try:
            if one.null_count == 0:
                one.cast(kind)
                continue
        except pa.ArrowException:
            pass
        return row + 1, one[0].as_py()
    return 1, None
