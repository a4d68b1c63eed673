"""python -m models predict: every format gives the same answers; bad rows fail no job."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from models.__main__ import main
from service import Recommender

TEXTS = ["the white whale", "a history of rome", "star and moon", "a rose garden"]
TABLE = pa.table({"id": ["a", "b", "c", "d"], "text": TEXTS})


def write_tsv(table: pa.Table, path: Path) -> None:
    csv.write_csv(table, path, csv.WriteOptions(delimiter="\t"))


def write_jsonl(table: pa.Table, path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


def write_gzip(table: pa.Table, path: Path) -> None:
    with gzip.open(path, "wb") as file:
        csv.write_csv(table, file)


def write_zst(table: pa.Table, path: Path) -> None:
    plain = path.with_suffix("")
    write_jsonl(table, plain)
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(plain.read_bytes())
    plain.unlink()


FORMATS: dict[str, Callable[[pa.Table, Path], Any]] = {
    "t.csv": csv.write_csv,
    "t.csv.gz": write_gzip,
    "t.tsv": write_tsv,
    "t.parquet": pq.write_table,
    "t.arrow": feather.write_feather,
    "t.feather": feather.write_feather,
    "t.jsonl": write_jsonl,
    "t.jsonl.zst": write_zst,
}


def predict(bundle: Path, inputs: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    """The rows that the command writes."""
    args = ["--bundle", str(bundle), "--in", str(inputs), "--out", str(out), "--workers", "1"]
    assert main(["predict", *args, *more]) == 0
    return [
        row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_answers_of_a_program(
    name: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    FORMATS[name](TABLE, tmp_path / name)
    rows = predict(tiny_bundle, tmp_path / name, tmp_path / "out", "--k", "3")
    with Recommender.open(tiny_bundle) as recommender:
        expected = recommender.recommend(TEXTS, k=3).results
    assert [row["id"] for row in rows] == ["a", "b", "c", "d"]
    assert [[(one["id"], one["score"], one["text"]) for one in row["labels"]] for row in rows] == [
        [(one.id, one.score, one.text) for one in result.labels] for result in expected
    ]


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (None, "the text is null"),
        (b" \t ", "the text is blank"),
        (b"", "the text is blank"),
        (b"x" * 8193, "the text has 8193 characters, the limit is 8192"),
        (b"a \xff", "the text is not UTF-8 at byte 2"),
    ],
)
def test_bad_row_gets_an_error_and_the_next_an_answer(
    raw: bytes | None, error: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    table = pa.table({"text": pa.array([raw, b"the white whale"], pa.binary())})
    pq.write_table(table, tmp_path / "t.parquet")
    bad, good = predict(tiny_bundle, tmp_path / "t.parquet", tmp_path / "out")
    assert (bad["id"], bad["labels"], bad["error"]) == (0, [], error)
    assert good["labels"]
    assert good["error"] is None
    summary = json.loads((tmp_path / "out" / "_SUMMARY.json").read_text())
    assert (summary["rows"], summary["failed_rows"], summary["errors"]) == (2, 1, {error: 1})


def test_bad_bytes_and_lines_of_a_csv_fail_no_job(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"id,text\n1,whale\n2,\xff\n3,a,b,c\n4,moon\n")
    rows = predict(tiny_bundle, path, tmp_path / "out")
    assert [(row["id"], bool(row["labels"])) for row in rows] == [
        ("1", True),
        ("2", False),
        ("4", True),
    ]
    [file] = json.loads((tmp_path / "out" / "_SUMMARY.json").read_text())["files"]
    assert file["bad_lines"] == 1


def test_bytes_do_not_depend_on_workers_and_a_file_is_written_once(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    many = pa.table({"text": [f"{text} {i}" for i in range(1500) for text in TEXTS]})
    pq.write_table(many, tmp_path / "t.parquet", row_group_size=2500)
    outs = []
    for workers in ("1", "3"):
        out = tmp_path / workers
        command = [sys.executable, "-m", "models", "predict", "--bundle", str(tiny_bundle)]
        command += ["--in", str(tmp_path / "t.parquet"), "--out", str(out), "--workers", workers]
        subprocess.run(command, check=True, timeout=120)
        [path] = out.glob("*.parquet")
        outs.append((path.name, path.read_bytes()))
    assert outs[0] == outs[1]
    before = path.stat().st_mtime_ns
    subprocess.run(command, check=True, timeout=120)
    assert path.stat().st_mtime_ns == before
    assert json.loads((out / "_SUMMARY.json").read_text())["files"][0]["skipped"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--text", "nothing"], "the column nothing of --text"),
        (["--effort", "lazy"], "effort: "),
        (["--k", "1000"], "k: "),
    ],
)
def test_wrong_argument_ends_with_one_sentence(
    more: list[str], message: str, tiny_bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    pq.write_table(TABLE, tmp_path / "t.parquet")
    args = ["--bundle", str(tiny_bundle), "--in", str(tmp_path / "t.parquet"), "--workers", "1"]
    assert main(["predict", *args, "--out", str(tmp_path / "out"), *more]) == 1
    assert message in capsys.readouterr().err


def test_where_and_min_score_narrow_every_answer(tiny_bundle: Path, tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "t.parquet")
    where = ["--where", '{"shelf": 3}', "--k", "2"]
    rows = predict(tiny_bundle, tmp_path / "t.parquet", tmp_path / "where", *where)
    with Recommender.open(tiny_bundle) as recommender:
        expected = recommender.recommend(TEXTS, k=2, where={"shelf": 3}).results
    assert [[one["id"] for one in row["labels"]] for row in rows] == [
        [one.id for one in result.labels] for result in expected
    ]
    rows = predict(tiny_bundle, tmp_path / "t.parquet", tmp_path / "min", "--min-score", "0.5")
    assert all(one["score"] >= 0.5 for row in rows for one in row["labels"])


def test_exported_vectors_find_what_the_bundle_finds(tiny_bundle: Path, tmp_path: Path) -> None:
    assert main(["export-vectors", "--bundle", str(tiny_bundle), "--out", str(tmp_path)]) == 0
    table = pq.read_table(tmp_path / "vectors.parquet")
    assert table.schema.metadata[b"metric"] == b"inner_product"
    vectors = np.stack(table.column("vector").to_numpy(zero_copy_only=False)).astype(np.float32)
    ids = table.column("id").to_pylist()
    with Recommender.open(tiny_bundle) as recommender:
        best = np.argmax(recommender.embed(TEXTS) @ vectors.T, axis=1)
        results = recommender.recommend(TEXTS, k=1, effort="exact").results
    assert [ids[row] for row in best] == [result.labels[0].id for result in results]
