"""Input tables as batches of ids and texts, one file at a time, in bounded memory."""

import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import csv, json

from models.data.tables.columns import NAMES
from models.data.tables.files import FORMATS, format_of
from models.errors import DataError
from service.recommender import TEXTS_AT_ONCE

KINDS: Final = {
    "csv": "csv",
    "tsv": "tsv",
    "parquet": "parquet",
    "arrow": "ipc",
    "json lines": "json",
}
"""What Arrow's readers call each format; lines without columns are no input."""
_BLOCK_BYTES: Final = 4 << 20
"""Of a CSV file at once: a choice, above the longest row and far below any memory."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file, with the columns that hold its texts and its ids; without ids, rows count from 0.

    `skipped` collects the lines of CSV that have a wrong number of columns.
    """

    path: Path
    read: Callable[[], Iterable[pa.RecordBatch]]
    text: str
    id: str | None
    id_type: Any
    skipped: list[str]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Batches with columns `id` and `text`, texts as bytes, of at most TEXTS_AT_ONCE rows."""
        first = 0
        try:
            for batch in self.read():
                for start in range(0, batch.num_rows, TEXTS_AT_ONCE):
                    yield self._prepared(batch.slice(start, TEXTS_AT_ONCE), first + start)
                first += batch.num_rows
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as exc:
            raise DataError(self.path, None, "a table of texts", str(exc)) from exc

    def _prepared(self, batch: pa.RecordBatch, first: int) -> pa.RecordBatch:
        rows = pa.array(range(first, first + batch.num_rows), pa.int64())
        ids = rows if self.id is None else batch.column(self.id)
        return pa.RecordBatch.from_arrays(
            [ids, batch.column(self.text).cast(pa.binary())], names=["id", "text"]
        )


def input_paths(patterns: Sequence[str]) -> list[Path]:
    """The files that names, folders and patterns stand for, sorted; raises DataError."""
    paths: set[Path] = set()
    for pattern in patterns:
        for name in [pattern] if Path(pattern).exists() else glob.glob(pattern, recursive=True):
            path = Path(name)
            inside = path.rglob("*") if path.is_dir() else [path]
            paths |= {one for one in inside if path == one or (_kind(one) and one.is_file())}
        if not paths:
            raise DataError(Path(pattern), None, "files of texts", "none")
    return sorted(paths)


def open_input(path: Path, text: str | None, id_column: str | None) -> InputFile:
    """Open a table and choose its columns, by name or by guess; raises DataError."""
    kind = _kind(path)
    if kind is None:
        endings = ", ".join(ending for ending, form in FORMATS.items() if form in KINDS)
        raise DataError(path, None, f"a file that ends in {endings}", path.name)
    skipped: list[str] = []
    try:
        schema = _schema(path, kind)
        chosen = _choose(path, schema.names, text, "text")
        if chosen is None:
            found = ", ".join(schema.names)
            raise DataError(path, None, f"a column {' or '.join(NAMES['text'])}", found)
        id_name = _choose(path, schema.names, id_column, "id")
        columns = [chosen] if id_name is None else [id_name, chosen]
        if kind == "json":
            id_type = pa.int64() if id_name is None else schema.field(id_name).type
            read = partial(_read_json, path, pa.schema([schema.field(name) for name in columns]))
            return InputFile(path, read, chosen, id_name, id_type, skipped)
        # Ids stay texts, and texts bytes: a broken one must fail its row and not the file.
        types = {chosen: pa.binary()} | ({} if id_name is None else {id_name: pa.string()})
        if kind in ("csv", "tsv"):
            id_type = pa.int64() if id_name is None else pa.string()
            reading = partial(_read_csv, path, kind, types, skipped)
            return InputFile(path, reading, chosen, id_name, id_type, skipped)
        dataset = ds.dataset(path, format=kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as exc:
        raise DataError(path, None, "a table of texts", str(exc)) from exc
    id_type = pa.int64() if id_name is None else dataset.schema.field(id_name).type
    [fragment] = dataset.get_fragments()
    read = partial(
        fragment.to_batches,
        columns=columns,
        batch_size=TEXTS_AT_ONCE,
        batch_readahead=2,
        use_threads=False,
    )
    return InputFile(path, read, chosen, id_name, id_type, skipped)


def _schema(path: Path, kind: str) -> pa.Schema:
    if kind in ("json", "csv", "tsv"):
        with pa.input_stream(str(path), compression="detect") as stream:
            if kind == "json":
                return json.open_json(stream).schema
            return csv.open_csv(stream, parse_options=_parse_options(kind, [])).schema
    return ds.dataset(path, format=kind).schema


def _read_csv(
    path: Path, kind: str, types: dict[str, pa.DataType], skipped: list[str]
) -> Iterator[pa.RecordBatch]:
    """Not by the dataset reader, which parses the first block twice and counts its bad lines so."""
    convert = csv.ConvertOptions(column_types=types, include_columns=list(types), check_utf8=False)
    with pa.input_stream(str(path), compression="detect") as stream:
        yield from csv.open_csv(
            stream,
            read_options=csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
            parse_options=_parse_options(kind, skipped),
            convert_options=convert,
        )


def _read_json(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The dataset reader of JSON lines cannot decompress, so these have a reader of their own."""
    options = json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    with pa.input_stream(str(path), compression="detect") as stream:
        yield from json.open_json(stream, parse_options=options)


def _choose(path: Path, names: Sequence[str], name: str | None, what: str) -> str | None:
    """The column for texts or ids: as named, or else by the usual names of tables."""
    if name is not None:
        if name not in names:
            raise DataError(path, None, f"the column {name} of --{what}", ", ".join(names))
        return name
    by_name = {each.lower(): each for each in names}
    return next((by_name[usual] for usual in NAMES[what] if usual in by_name), None)


def _kind(path: Path) -> str | None:
    return KINDS.get(format_of(path) or "")


def _parse_options(kind: str, skipped: list[str]) -> csv.ParseOptions:
    def skip(row: Any) -> str:
        skipped.append(f"{row.actual_columns} columns, expected {row.expected_columns}")
        return "skip"

    return csv.ParseOptions(
        delimiter="\t" if kind == "tsv" else ",",
        newlines_in_values=True,
        invalid_row_handler=skip,
    )
