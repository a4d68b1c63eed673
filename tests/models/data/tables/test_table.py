"""Every format reads to the same data set; what is wrong is named by file, row and column."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, ipc, parquet

from models.config import TableConfig
from models.data.dataset import Dataset
from models.data.formats import open_dataset, write_dataset
from models.data.tables.table import read_table
from models.errors import DataError

TEXTS = ["a white whale", 'the "sea", calm', "line\none", "größe — 鯨", "a\tb"]
LABELS = [["Whales", "Sea -- Fiction"], ["Sea -- Fiction"], ["Smith, John"], [], ["Whales"]]


def write_csv(path: Path, delimiter: str = ",", separator: str = "|") -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter)
    writer.writerow(["text", "labels"])
    writer.writerows([text, separator.join(own)] for text, own in zip(TEXTS, LABELS, strict=True))
    path.write_bytes(buffer.getvalue().encode())
    return path.read_bytes()


def as_table() -> pa.Table:
    return pa.table({"text": TEXTS, "labels": pa.array(LABELS, pa.list_(pa.string()))})


def write_stream(path: Path, table: pa.Table) -> None:
    with ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table)


def saved(folder: Path) -> None:
    """A folder as `datasets` saves one."""
    folder.mkdir()
    write_stream(folder / "data-00000-of-00001.arrow", as_table())
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))


def lines() -> bytes:
    records = [{"text": text, "labels": own} for text, own in zip(TEXTS, LABELS, strict=True)]
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def pairs() -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["query", "label"])
    for text, own in zip(TEXTS, LABELS, strict=True):
        writer.writerows([text, label] for label in own or [""])
    return buffer.getvalue().encode()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


FORMATS: dict[str, Callable[[Path], Path]] = {
    "csv": lambda d: (write_csv(d / "t.csv"), d / "t.csv")[1],
    "csv, semicolons": lambda d: (write_csv(d / "t.csv", separator=" ; "), d / "t.csv")[1],
    "tsv": lambda d: (write_csv(d / "t.tsv", "\t"), d / "t.tsv")[1],
    "csv.gz": lambda d: _put(d / "t.csv.gz", gzip.compress(write_csv(d / "x"))),
    "csv.zst": lambda d: _put(d / "t.csv.zst", zstd(write_csv(d / "x"))),
    "byte order mark": lambda d: _put(d / "t.csv", b"\xef\xbb\xbf" + write_csv(d / "x")),
    "parquet": lambda d: (parquet.write_table(as_table(), d / "t.parquet"), d / "t.parquet")[1],
    "feather": lambda d: (feather.write_feather(as_table(), d / "t.feather"), d / "t.feather")[1],
    "arrow stream": lambda d: (write_stream(d / "t.arrow", as_table()), d / "t.arrow")[1],
    "json lines": lambda d: _put(d / "t.jsonl", lines()),
    "json lines, gz": lambda d: _put(d / "t.jsonl.gz", gzip.compress(lines())),
    "saved by datasets": lambda d: (saved(d / "s"), d / "s")[1],
    "pairs": lambda d: _put(d / "t.csv", pairs()),
    "folder": lambda d: (write_csv(d / "part-1.csv"), d)[1],
}


def _put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def content(dataset: Dataset) -> list[tuple[str, list[str]]]:
    points, titles = dataset.train, dataset.labels.titles
    starts = points.labels.indptr
    return [
        (text, sorted(titles[i] for i in points.labels.indices[starts[row] : starts[row + 1]]))
        for row, text in enumerate(points.titles)
    ]


EXPECTED = [(text, sorted(own)) for text, own in zip(TEXTS, LABELS, strict=True)]
WHOLE = TableConfig(test_share=0.0)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_reads_to_the_same_data_set(form: str, tmp_path: Path) -> None:
    dataset, report = read_table(FORMATS[form](tmp_path), WHOLE)
    assert content(dataset) == EXPECTED
    assert dataset.test is None
    assert sorted(dataset.labels.uids) == sorted(["Whales", "Sea -- Fiction", "Smith, John"])
    assert (dataset.train.labels.data == 1).all()
    assert report.n_rows == (6 if form == "pairs" else 5)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.txt", "__label__a __label__b a whale\n__label__b the sea\n"),
        ("t.tsv", "a whale\t<http://x/a> <http://x/b>\nthe sea\t<http://x/b>\n"),
    ],
)
def test_lines_without_a_header_are_read(name: str, data: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(data)
    dataset, _ = read_table(tmp_path / name, WHOLE)
    assert dataset.train.titles == ["a whale", "the sea"]
    assert np.diff(dataset.train.labels.indptr).tolist() == [2, 1]


def test_pairs_are_gathered_and_their_weights_added_up(tmp_path: Path) -> None:
    rows = "query,label,clicks\nwhale,Sea,2\nrome,War,1\nwhale,Sea,3\nwhale,Ice,0.5\n"
    (tmp_path / "log.csv").write_text(rows)
    dataset, report = read_table(
        tmp_path / "log.csv", WHOLE.model_copy(update={"weight": "clicks"})
    )
    assert dataset.train.titles == ["whale", "rome"]
    assert dataset.train.labels.toarray().tolist() == [[5.0, 0.0, 0.5], [0.0, 1.0, 0.0]]
    assert report.n_gathered == 2


def test_a_label_table_brings_ids_texts_and_typed_metadata(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,labels\na whale,2|1\nrome,1\n")
    (tmp_path / "labels.csv").write_text(
        "id,name,price,stock,since,note\n1,Rome,9.5,3,2026-01-02,\n2,Whales,12,0,2025-05-05,x\n"
        "3,Nobody's,1,1,2024-01-01,y\n"
    )
    dataset, _ = read_table(tmp_path, WHOLE)
    assert (dataset.labels.uids, dataset.labels.titles) == (
        ["1", "2", "3"],
        ["Rome", "Whales", "Nobody's"],
    )
    assert dataset.labels.metadata == [
        {"price": 9.5, "stock": 3, "since": "2026-01-02"},
        {"price": 12.0, "stock": 0, "since": "2025-05-05", "note": "x"},
        {"price": 1.0, "stock": 1, "since": "2024-01-01", "note": "y"},
    ]
    assert content(dataset) == [("a whale", ["Rome", "Whales"]), ("rome", ["Rome"])]


def test_metadata_outlives_this_projects_own_layout(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,labels\na whale,1\nrome,2\n")
    (tmp_path / "labels.csv").write_text("id,name,price\n1,Whales,9.5\n2,Rome,\n")
    dataset, _ = read_table(tmp_path, WHOLE)
    write_dataset(tmp_path / "own", dataset)
    assert open_dataset(tmp_path / "own").labels == dataset.labels


def test_labels_may_be_named_by_their_texts(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,labels\na whale,Whales\n")
    (tmp_path / "labels.csv").write_text("id,name\nw,Whales\n")
    dataset, _ = read_table(tmp_path, WHOLE)
    assert dataset.labels.uids == ["w"]


def test_a_name_that_no_url_carries_gets_an_id_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,labels\na,x/../y\nb,x/./y\n")
    dataset, _ = read_table(tmp_path / "t.csv", WHOLE)
    assert dataset.labels.titles == ["x/../y", "x/./y"]
    assert len(set(dataset.labels.uids)) == 2


def many(n: int) -> str:
    rows = [f"text number {word} of {n},label{word % 5},{2000 + word}-01-01" for word in range(n)]
    return "text,label,year\n" + "\n".join(rows) + "\n"


def test_the_newest_rows_are_held_out_by_time(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(many(100))
    dataset, report = read_table(tmp_path / "t.csv", TableConfig(time="year", test_share=0.2))
    assert dataset.test is not None
    assert [text.split()[2] for text in dataset.test.titles] == [str(n) for n in range(80, 100)]
    assert "newest" in report.split


def test_a_hash_holds_out_the_same_rows_each_time_and_series_whole(tmp_path: Path) -> None:
    works = ["".join(chr(97 + int(digit)) for digit in str(n)) for n in range(100)]
    rows = [f"The History of {work}; Vol. {n},Label" for work in works for n in range(4)]
    (tmp_path / "t.csv").write_text("text,labels\n" + "\n".join(rows) + "\n")
    first, again = (read_table(tmp_path / "t.csv", TableConfig())[0] for _ in range(2))
    assert first.test is not None
    assert again.test is not None
    assert first.test.titles == again.test.titles
    assert 10 < len(first.test) < 90
    sides = [{text.split(";")[0] for text in part.titles} for part in (first.train, first.test)]
    assert not sides[0] & sides[1]


def csv_of(*rows: str) -> bytes:
    return "\n".join(rows).encode() + b"\n"


Files = dict[str, bytes]
MALFORMED: list[tuple[str, Files, dict[str, Any], str]] = [
    ("empty file", {"t.csv": b""}, {}, r"t\.csv: expected a table with rows, found an empty file"),
    ("header alone", {"t.csv": b"text,labels\n"}, {}, "found a header alone"),
    (
        "bad UTF-8",
        {"t.csv": b"text,labels\na,b\n\xff\xfe,c\n"},
        {},
        r"t\.csv, row 2: expected UTF-8",
    ),
    ("ragged row", {"t.csv": csv_of("text,labels", "a,b", "c,d,e")}, {}, r"t\.csv, row 3.*3"),
    ("unclosed quote", {"t.csv": csv_of("text,labels", 'a,"b')}, {}, r"t\.csv"),
    ("column twice", {"t.csv": csv_of("text,labels,text", "a,b,c")}, {}, "column text.*it twice"),
    ("no text column", {"t.csv": csv_of("a,labels", "x,y")}, {}, "--text.*found a, labels"),
    ("no labels column", {"t.csv": csv_of("text,b", "x,y")}, {}, "--labels.*found text, b"),
    ("two labels columns", {"t.csv": csv_of("text,labels,tags", "a,b,c")}, {}, "labels and tags"),
    ("named text absent", {"t.csv": csv_of("text,labels", "a,b")}, {"text": "x"}, "column x"),
    ("named time absent", {"t.csv": csv_of("text,labels", "a,b")}, {"time": "x"}, "column x"),
    (
        "weight negative",
        {"t.csv": csv_of("text,label,w", "a,b,1", "c,d,-2")},
        {"weight": "w"},
        r"row 2, column w: expected a weight.*-2\.0",
    ),
    (
        "weight not a number",
        {"t.csv": csv_of("text,label,w", "a,b,1", "c,d,many")},
        {"weight": "w"},
        "row 2, column w: expected a number, found 'many'",
    ),
    (
        "weight NaN",
        {"t.csv": csv_of("text,label,w", "a,b,nan")},
        {"weight": "w"},
        "row 1, column w: expected a weight",
    ),
    (
        "time not a time",
        {"t.csv": csv_of("text,label,t", "a,b,2026-01-01", "c,d,soon")},
        {"time": "t"},
        "row 2, column t: expected a time in ISO 8601.*'soon'",
    ),
    (
        "time missing",
        {"t.jsonl": b'{"text":"a","label":"b","t":"2026-01-01"}\n{"text":"c","label":"d"}\n'},
        {"time": "t"},
        "row 2, column t",
    ),
    ("no labels at all", {"t.csv": csv_of("text,labels", "a,", "b,")}, {}, "none in any row"),
    ("labels are numbers with points", {"t.jsonl": b'{"text":"a","labels":[1.5]}\n'}, {}, "labels"),
    ("texts are lists", {"t.jsonl": b'{"text":["a"],"labels":["b"]}\n'}, {}, "column text"),
    ("JSON broken", {"t.jsonl": b'{"text":"a","labels":["b"]}\n{"text":\n'}, {}, r"t\.jsonl"),
    ("JSON of two types", {"t.jsonl": b'{"text":"a"}\n{"text":1}\n'}, {}, r"t\.jsonl, row 1"),
    ("gzip cut", {"t.csv.gz": gzip.compress(b"text,labels\na,b\n" * 99)[:40]}, {}, r"t\.csv\.gz"),
    ("no gzip", {"t.csv.gz": b"text,labels\na,b\n"}, {}, r"t\.csv\.gz"),
    ("zstd cut", {"t.csv.zst": zstd(b"text,labels\na,b\n" * 999)[:20]}, {}, r"t\.csv\.zst"),
    ("no parquet", {"t.parquet": b"text,labels\n"}, {}, r"t\.parquet"),
    ("no arrow", {"t.arrow": b"text,labels\n"}, {}, r"t\.arrow"),
    ("fastText without label", {"t.txt": b"__label__a b\nno label\n"}, {}, "row 2.*__label__"),
    ("Annif line broken", {"t.tsv": b"a\t<http://x>\nb\tc\n"}, {}, "row 2.*<uri>"),
    (
        "formats mixed",
        {"a.csv": b"text,labels\na,b\n", "b.tsv": b"text\tlabels\na\tb\n"},
        {},
        "one form",
    ),
    ("no table", {"readme.md": b"hello"}, {}, r"expected tables.*readme\.md"),
    (
        "columns differ",
        {"a.csv": csv_of("text,labels", "a,b"), "b.csv": csv_of("title,labels", "a,b")},
        {},
        r"b\.csv.*the columns of a\.csv",
    ),
    (
        "label not in the table",
        {"train.csv": csv_of("text,labels", "a,x", "b,y"), "labels.csv": csv_of("id,name", "x,X")},
        {},
        r"train\.csv, row 2: expected a label of labels\.csv, found 'y'",
    ),
    (
        "label twice",
        {"train.csv": csv_of("text,labels", "a,x"), "labels.csv": csv_of("id,name", "x,X", "x,Y")},
        {},
        r"labels\.csv, row 2, column id.*'x' again",
    ),
    (
        "label id in no URL",
        {"train.csv": csv_of("text,labels", "a,x"), "labels.csv": csv_of("id,name", "a/../b,X")},
        {},
        r"labels\.csv, row 1, column id: expected an id that a URL",
    ),
    (
        "label table without texts",
        {"train.csv": csv_of("text,labels", "a,x"), "labels.csv": csv_of("id,b", "x,X")},
        {},
        r"labels\.csv: expected a column of the labels' texts",
    ),
    (
        "label table absent",
        {"t.csv": csv_of("text,labels", "a,b")},
        {"label_table": "no.csv"},
        "no.csv",
    ),
]


@pytest.mark.parametrize(
    ("files", "options", "says"), [case[1:] for case in MALFORMED], ids=[c[0] for c in MALFORMED]
)
def test_what_is_wrong_is_named(
    files: Files, options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    path = tmp_path / next(iter(files)) if len(files) == 1 else tmp_path
    if "no table" in says or next(iter(files)).endswith(".md"):
        path = tmp_path
    with pytest.raises(DataError, match=says):
        read_table(path, TableConfig(**options))


def test_a_path_of_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing of that name"):
        read_table(tmp_path / "no.csv", WHOLE)
    (tmp_path / "table.xlsx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"ends in one of \.csv"):
        read_table(tmp_path / "table.xlsx", WHOLE)
