"""What lies under an open bundle is looked at again, without reading all of it each time."""

from pathlib import Path

import pytest

from service.bundle.open_files import OpenFiles
from service.bundle.verify import read_manifest


@pytest.fixture
def copied(tiny_bundle: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for path in tiny_bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_touched_file_is_hashed_once(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = OpenFiles(copied, read_manifest(copied).files)
    assert files.fault() is None
    (copied / "labels.jsonl").touch()
    assert files.fault() is None
    monkeypatch.delattr("service.bundle.open_files.hash_file")
    assert files.fault() is None


def test_a_changed_file_is_named_until_it_is_whole_again(copied: Path) -> None:
    files = OpenFiles(copied, read_manifest(copied).files)
    path = copied / "labels.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    for _ in range(2):
        assert (
            files.fault() == "labels.jsonl of the bundle was changed on disk: put the bundle back"
        )
    path.write_bytes(content)
    assert files.fault() is None
