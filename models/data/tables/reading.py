"""Reads one file of a table with pyarrow. Texts of CSV stay texts: what looks like a number is one.

fastText lines and Annif's corpora have no header; they get the columns `text` and `labels`.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from models.data.formats_lines import quote
from models.data.tables.files import COMPRESSED, format_of
from models.errors import TableError
from models.extras import need

if TYPE_CHECKING:
    import pyarrow as pa

FASTTEXT_LABEL: Final = "__label__"
_ROW = re.compile(r"[Rr]ow #?(\d+)")
_URI = re.compile(r"<[^<>\s]+>")


def read_file(path: Path) -> "pa.Table":
    """The whole file. Raises TableError, which names file and row."""
    need("pyarrow", "train")
    import pyarrow as pa

    form = format_of(path)
    try:
        if form == "parquet":
            from pyarrow import parquet

            return _named_once(path, parquet.ParquetFile(path).read())
        if form == "arrow":
            return _named_once(path, _read_arrow(path))
        data = _bytes_of(path)
        if not data.strip():
            raise TableError(path, None, None, "a table with rows", "an empty file")
        if form == "json lines":
            return _named_once(path, _read_json(data))
        if form == "fastText lines":
            return _read_fasttext(path, data)
        if form == "tsv" and _is_annif(data):
            return _read_annif(path, data)
        return _named_once(path, _read_csv(path, data, "\t" if form == "tsv" else ","))
    except pa.ArrowException as exc:
        row = _ROW.search(str(exc))
        first = str(exc).splitlines()[0]
        raise TableError(path, int(row[1]) if row else None, None, f"{form}", first) from exc
    except OSError as exc:
        why = exc.strerror or str(exc).splitlines()[0]
        raise TableError(path, None, None, f"a whole file of {form}", why) from exc
    except EOFError as exc:
        raise TableError(path, None, None, f"a whole file of {form}", str(exc)) from exc


def _bytes_of(path: Path) -> bytes:
    import pyarrow as pa

    codec = COMPRESSED.get(path.suffix)
    with pa.input_stream(str(path), compression=codec) as stream:
        return bytes(stream.read())


def _read_arrow(path: Path) -> "pa.Table":
    import pyarrow as pa
    from pyarrow import feather, ipc

    with path.open("rb") as file:
        if file.read(6) == b"ARROW1":
            return feather.read_table(path)
    with pa.memory_map(str(path)) as source:  # a stream, as `datasets` saves it
        return ipc.open_stream(source).read_all()


def _read_csv(path: Path, data: bytes, delimiter: str) -> "pa.Table":
    import pyarrow as pa
    from pyarrow import csv

    _check_utf8(path, data)
    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    read = csv.ReadOptions(use_threads=False, block_size=max(1 << 20, len(data)))
    names = csv.open_csv(pa.BufferReader(data), read_options=read, parse_options=parse).schema.names
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
    )
    table = csv.read_csv(
        pa.BufferReader(data), read_options=read, parse_options=parse, convert_options=convert
    )
    last = table.slice(max(table.num_rows - 1, 0)).to_pylist()
    if data.count(b'"') % 2 and last and any("\n" in (value or "") for value in last[0].values()):
        # pyarrow takes a quote without an end for a value up to the end of the file.
        raise TableError(path, table.num_rows, None, "an end of each quote", repr(last[0]))
    return table


def _read_json(data: bytes) -> "pa.Table":
    import pyarrow as pa
    from pyarrow import json

    read = json.ReadOptions(use_threads=False, block_size=max(1 << 20, len(data)))
    return json.read_json(pa.BufferReader(data), read_options=read)


def _read_fasttext(path: Path, data: bytes) -> "pa.Table":
    texts, labels = [], []
    for row, line in enumerate(_lines(path, data), 1):
        words = line.split()
        own = [word for word in words if word.startswith(FASTTEXT_LABEL)]
        if not own:
            raise TableError(path, row, None, f"a line with {FASTTEXT_LABEL}NAME", repr(line[:80]))
        labels.append([word.removeprefix(FASTTEXT_LABEL) for word in own])
        texts.append(" ".join(word for word in words if word not in own))
    return _table(texts, labels)


def _is_annif(data: bytes) -> bool:
    """Whether the first line is `text<TAB><uri> <uri>`, which no header is."""
    _, tab, uris = data.split(b"\n", 1)[0].decode("utf-8", "replace").rpartition("\t")
    return bool(tab) and all(_URI.fullmatch(uri) for uri in uris.split() or [""])


def _read_annif(path: Path, data: bytes) -> "pa.Table":
    texts, labels = [], []
    for row, line in enumerate(_lines(path, data), 1):
        text, tab, uris = line.rpartition("\t")
        if not tab or not all(_URI.fullmatch(uri) for uri in uris.split()):
            raise TableError(path, row, None, "text<TAB><uri> <uri>", repr(line[:80]))
        texts.append(text)
        labels.append([uri[1:-1] for uri in uris.split()])
    return _table(texts, labels)


def _table(texts: list[str], labels: list[list[str]]) -> "pa.Table":
    import pyarrow as pa

    return pa.table({"text": texts, "labels": pa.array(labels, pa.list_(pa.string()))})


def _lines(path: Path, data: bytes) -> list[str]:
    _check_utf8(path, data)
    return [line for line in data.decode("utf-8-sig").splitlines() if line.strip()]


def _check_utf8(path: Path, data: bytes) -> None:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start)
        bad = data[max(0, exc.start - 20) : exc.start + 20]
        raise TableError(path, max(line, 1), None, "UTF-8 text", quote(bad)) from exc


def _named_once(path: Path, table: "pa.Table") -> Any:
    names = table.column_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TableError(path, None, twice[0], "a name of its own for each column", "it twice")
    if table.num_rows == 0:
        raise TableError(path, None, None, "a table with rows", "a header alone")
    return table
