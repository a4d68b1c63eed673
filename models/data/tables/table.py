"""Opens a table as a data set: finds its files, reads them, holds test rows out, names labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from models.config import DataConfig, TableConfig
from models.data.dataset import Dataset, LabelCatalogue, Points
from models.data.formats import open_dataset
from models.data.formats_lines import hash_files
from models.data.splits import series_key
from models.data.tables.columns import Columns, choose_columns
from models.data.tables.files import find_files, has_own_layout
from models.data.tables.gathering import (
    Rows,
    gathered,
    label_matrix,
    rows_of,
    separator_of,
)
from models.data.tables.label_table import catalogue_of_names, read_label_table
from models.data.tables.reading import read_file
from models.errors import DataError, TableError

if TYPE_CHECKING:
    pass


HELD_OUT_FROM: Final = 100
"""Rows from which test rows are held out. A choice: a tenth of fewer measures nothing."""


@dataclass(frozen=True, slots=True)
class TableReport:
    """What became of a table, for the plan."""

    files: list[Path]
    columns: Columns
    separator: str
    n_rows: int
    n_gathered: int
    """Rows that went into another row of the same text."""
    split: str
    """How test points were found."""


def open_data(data: DataConfig) -> Dataset:
    """The data set of a configuration: in this project's own layout, or a table.

    Raises DataError.
    """
    path = Path(data.path)
    if not path.exists() or (path.is_dir() and has_own_layout(path)):
        return open_dataset(path)
    return read_table(path, data.table)[0]


def read_table(path: Path, table: TableConfig) -> tuple[Dataset, TableReport]:
    """The data set in a table, and what was read. Raises DataError, TableError."""
    files = find_files(path, table.label_table)
    train, columns, separator = _read_part(files.train, table)
    test = None
    if files.test:
        named = table.model_copy(
            update={"text": columns.text, "labels": columns.labels, "separator": separator}
        )
        test = _read_part(files.test, named)[0]
    n_rows, n_gathered = len(train), 0
    if train.is_pairs:
        train, n_gathered = gathered(train)
        test = test and gathered(test)[0]
    split = "the given test rows" if test is not None else ""
    held = np.zeros(len(train), bool)
    if test is None and table.test_share and len(train) >= HELD_OUT_FROM:
        held, split = _held_out(train, table)
    names, train_columns, test_columns = _encode(train, test)
    catalogue = catalogue_of_names(names)
    if files.labels is not None:
        catalogue, train_columns, test_columns = _look_up(
            files.labels, names, (train, train_columns), (test, test_columns)
        )
    points = _points(train, train_columns, catalogue)
    test_points = None if test is None else _points(test, test_columns, catalogue)
    if held.any():
        points, test_points = points.take(np.flatnonzero(~held)), points.take(np.flatnonzero(held))
    all_files = [*files.train, *files.test, *([files.labels] if files.labels else [])]
    dataset = Dataset(
        path.resolve().name.partition(".")[0],
        points,
        test_points,
        catalogue,
        None,
        None,
        _sha256(all_files, table),
    )
    return dataset, TableReport(all_files, columns, separator, n_rows, n_gathered, split)


def _read_part(files: Sequence[Path], table: TableConfig) -> tuple[Rows, Columns, str]:
    import pyarrow as pa
    import pyarrow.compute as pc

    tables = [read_file(file) for file in files]
    columns = choose_columns(files[0], tables[0].column_names, table)
    separator = separator_of(tables[0], columns.labels, table.separator)
    parts: list[Rows] = []
    for file, each in zip(files, tables, strict=True):
        own = choose_columns(file, each.column_names, table)
        if own != columns:
            raise TableError(file, None, own.text, f"the columns of {files[0].name}", own.labels)
        parts.append(rows_of(file, each, columns, separator))
    if len(parts) == 1:
        return parts[0], columns, separator
    starts = np.cumsum([0, *(len(part) for part in parts)])
    names = pa.concat_arrays([pc.cast(part.pair_names, pa.string()) for part in parts])
    joined = replace(
        parts[0],
        texts=[text for part in parts for text in part.texts],
        contents=[text for part in parts for text in part.contents],
        ids=[text for part in parts for text in part.ids],
        times=_joined([part.times for part in parts]),
        pair_rows=np.concatenate(
            [part.pair_rows + start for part, start in zip(parts, starts, strict=False)]
        ),
        pair_names=names,
        pair_weights=_joined([part.pair_weights for part in parts]),
    )
    return joined, columns, separator


def _joined(parts: Sequence[NDArray | None]) -> NDArray | None:
    there = [part for part in parts if part is not None]
    return np.concatenate(there) if there else None


def _held_out(rows: Rows, table: TableConfig) -> tuple[NDArray[np.bool_], str]:
    """Which rows are test rows: the newest, or whole groups by a hash of their texts."""
    share = table.test_share
    if rows.times is not None:
        cut = np.quantile(rows.times, 1 - share, method="higher")
        return rows.times >= max(
            cut, rows.times.min() + 1
        ), f"the newest {share:.0%} by {table.time}"
    keys = (series_key(text) or text.strip().casefold() for text in rows.texts)
    hashes = np.fromiter(
        (int.from_bytes(blake2b(key.encode(), digest_size=8).digest()) for key in keys),
        np.uint64,
        len(rows),
    )
    return hashes < np.uint64(share * 2**64), f"{share:.0%} by a hash of the text, series together"


def _encode(
    train: Rows, test: Rows | None
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """The names of all labels by their first appearance, and the number of each pair's."""
    import pyarrow as pa

    both = [train.pair_names.cast(pa.string())]
    if test is not None:
        both.append(test.pair_names.cast(pa.string()))
    encoded = pa.concat_arrays(both).dictionary_encode()
    numbers = np.asarray(encoded.indices).astype(np.int64)
    names = encoded.dictionary.to_pylist()
    if not names:
        raise TableError(train.path, None, None, "labels", "none in any row")
    return names, numbers[: len(both[0])], numbers[len(both[0]) :]


def _look_up(
    path: Path,
    names: Sequence[str],
    train: tuple[Rows, NDArray[np.int64]],
    test: tuple[Rows | None, NDArray[np.int64]],
) -> tuple[LabelCatalogue, NDArray[np.int64], NDArray[np.int64]]:
    """The labels of a label table, and the pairs by their rows there. Raises TableError."""
    catalogue = read_label_table(path)
    by_id = {uid: row for row, uid in enumerate(catalogue.uids)}
    by_text = {text: row for row, text in enumerate(catalogue.titles)}
    places = max((by_id, by_text), key=lambda known: sum(name in known for name in names))
    rows = np.array([places.get(name, -1) for name in names], np.int64)
    for part, numbers in (train, test):
        if part is not None and len(numbers) and (unknown := rows[numbers] < 0).any():
            pair = int(np.argmax(unknown))
            name = names[int(numbers[pair])]
            raise TableError(
                part.path,
                int(part.pair_rows[pair]) + 1,
                None,
                f"a label of {path.name}",
                repr(name),
            )
    return catalogue, rows[train[1]], rows[test[1]] if len(test[1]) else test[1]


def _points(rows: Rows, columns: NDArray[np.int64], catalogue: LabelCatalogue) -> Points:
    matrix, n_merged = label_matrix(rows, columns, len(catalogue))
    return Points(rows.ids, rows.texts, rows.contents, matrix, merged_targets=n_merged)


def _sha256(files: Sequence[Path], table: TableConfig) -> str:
    """Of the files' bytes, and of what the columns were said to be."""
    try:
        return blake2b(
            f"{hash_files(files)}{table.model_dump_json(exclude={'label_table'})}".encode(),
            digest_size=32,
        ).hexdigest()
    except OSError as exc:
        raise DataError(files[0], None, "a readable file", exc.strerror or str(exc)) from exc
