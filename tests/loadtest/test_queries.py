"""Query files: the forms read, and complaints that name file and line."""

import gzip
import os
from pathlib import Path

import pytest

from loadtest.errors import UsageError
from loadtest.queries import MAX_LINE_BYTES, load_queries


def test_the_packaged_list_is_used_without_a_file():
    texts = load_queries(None)
    assert len(texts) == 50
    assert len(set(texts)) == 50
    assert all(text.strip() == text != "" for text in texts)


def test_plain_lines_skip_blank_ones(tmp_path: Path):
    path = tmp_path / "q.txt"
    path.write_text("\ufeffone\n\n  two  \n", encoding="utf-8")
    assert load_queries(str(path)) == ["one", "two"]


@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz"])
def test_json_lines_give_their_titles(tmp_path: Path, name: str):
    data = b'\xef\xbb\xbf{"title": "one", "labels": [1]}\n{"title": "zw\xc3\xb6lf"}\n\n \r\n'
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert load_queries(str(path)) == ["one", "zwölf"]


@pytest.mark.parametrize(
    ("data", "line", "complaint"),
    [
        (b'{"title": "one"}\n{"title": \n', 2, "is not JSON"),
        (b'{"title": "one"}\n\n{"name": "two"}\n', 3, "'title'"),
        (b'{"title": "one"}\n["two"]\n', 2, "'title'"),
        (b'{"title": "  "}\n', 1, "non-empty"),
        (b"one\ntwo\n\xff\xfe\n", 3, "is not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, data: bytes, line: int, complaint: str):
    path = tmp_path / "q.jsonl"
    path.write_bytes(data)
    with pytest.raises(UsageError) as caught:
        load_queries(str(path))
    assert f"{path} line {line}" in str(caught.value)
    assert complaint in str(caught.value)


def test_an_empty_file_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "empty.txt"
    path.write_text("\n \n")
    with pytest.raises(UsageError, match=r"empty\.txt has no queries"):
        load_queries(str(path))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"plain text", id="no gzip"),
        pytest.param(gzip.compress(b"one\n" * 999)[:-12], id="cut"),
    ],
)
def test_a_broken_gzip_file_is_refused_by_name(tmp_path: Path, data: bytes):
    path = tmp_path / "q.txt.gz"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"q\.txt\.gz is not a whole gzip file"):
        load_queries(str(path))


@pytest.mark.parametrize("name", ["q.txt", "q.txt.gz"])
@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str, name: str):
    path = tmp_path / name
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(UsageError, match="is not a regular file"):
        load_queries(str(path))


@pytest.mark.parametrize("name", ["q.txt", "q.txt.gz"])
def test_a_line_without_end_is_refused(tmp_path: Path, name: str):
    data = b"one\n" + bytes(MAX_LINE_BYTES + 1)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(UsageError, match=r"line 2 has over 1,048,576 bytes"):
        load_queries(str(tmp_path / name))


def test_a_file_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("loadtest.queries.MAX_FILE_BYTES", 99)
    (tmp_path / "q.txt").write_bytes(b"\n" * 100)
    with pytest.raises(UsageError, match=r"has over 99 bytes"):
        load_queries(str(tmp_path / "q.txt"))


def test_a_missing_file_is_refused_by_name(tmp_path: Path):
    with pytest.raises(UsageError, match=r"gone\.txt cannot be read: No such file"):
        load_queries(str(tmp_path / "gone.txt"))
