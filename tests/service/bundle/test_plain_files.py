import os
from pathlib import Path

import pytest

from service.bundle.plain_files import read_object
from service.errors import FileMissing, ManifestInvalid


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"a": {"b": 1, "b": 2}}', "a: the name 'b' stands twice"),
        (b'{"a": NaN}', "NaN"),
        (b"[1]", "expected a JSON object, found list"),
    ],
)
def test_a_file_that_is_no_strict_object_is_refused_by_its_name(
    tmp_path: Path, raw: bytes, words: str
) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(raw)
    with pytest.raises(ManifestInvalid, match=r"manifest\.json") as refusal:
        read_object(path)
    assert words in refusal.value.detail


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
