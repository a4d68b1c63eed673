import os
from pathlib import Path

import pytest

from service.bundle.strict_json import parse, read_object
from service.errors import FileMissing, ManifestInvalid


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'{"x": {"b": 1, "b": 1}}', "'b' stands twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "1e999 is too large"),
        (b'{"a": 9223372036854775808}', "9223372036854775808 is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is too large"),
        (b'{"a": "\\ud800"}', "surrogates"),
        (b'{"\\udfff": 1}', "surrogates"),
        (b'{"a": "\xff"}', "utf-8"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", "nested over 32 deep"),
        (b"[" * 1_000_000, "recursion"),
        (b'{"a": 1} {', "Extra data"),
        (b"[1]", "expected a JSON object, found list"),
    ],
)
def test_what_others_would_read_differently_is_refused(
    tmp_path: Path, raw: bytes, words: str
) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(raw)
    with pytest.raises(ManifestInvalid, match=r"manifest\.json") as refusal:
        read_object(path)
    assert words in refusal.value.detail


def test_ordinary_documents_come_back_whole() -> None:
    raw = '{"π": [1, -9223372036854775807, 0.5, "日本"], "deep": [[[{"x": null}]]]}'.encode()
    assert parse(raw) == {
        "π": [1, -9223372036854775807, 0.5, "日本"],
        "deep": [[[{"x": None}]]],
    }


def test_a_pipe_is_refused_at_once_and_a_missing_file_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ManifestInvalid, match=r"pipe\.json is not a plain file"):
        read_object(tmp_path / "pipe.json")
    with pytest.raises(FileMissing, match=r"gone\.json"):
        read_object(tmp_path / "gone.json")


def test_a_file_over_the_limit_is_not_read_on(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    path.write_bytes(b"{}" + b" " * 100)
    with pytest.raises(ManifestInvalid, match="over 50 bytes"):
        read_object(path, 50)
