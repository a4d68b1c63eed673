"""What lies under an open bundle is looked at again, without reading all of it each time."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.bundle.open_files import OpenFiles, stamps
from service.bundle.verify import read_manifest
from service.core import engine
from service.core.engine import Engine
from service.errors import BundleError


@pytest.fixture
def copied(tiny_bundle: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for path in tiny_bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def open_files(folder: Path) -> OpenFiles:
    return OpenFiles(folder, read_manifest(folder).files, stamps(folder))


def overwrite(path: Path) -> None:
    """Other bytes of the same number, in the same file, with the same time."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def exchange(path: Path) -> None:
    """Another file of the same size and time in its place."""
    before, other = path.stat(), path.with_name("other")
    other.write_bytes(bytes(before.st_size))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("name", ["encoder.onnx", "labels.jsonl", "index.hnsw.faiss"])
@pytest.mark.parametrize("change", [overwrite, exchange, Path.unlink])
@pytest.mark.parametrize("moment", ["open_encoder", "open_index", "open_item_filter"])
def test_a_bundle_whose_file_changes_between_hash_and_opening_is_refused(
    copied: Path,
    name: str,
    change: Callable[[Path], None],
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opener = getattr(engine, moment)

    def changed_just_before(*args: Any) -> Any:
        change(copied / name)
        return opener(*args)

    monkeypatch.setattr(engine, moment, changed_just_before)
    with pytest.raises(BundleError, match=name):
        Engine.open(copied, device="cpu")


def test_bytes_that_change_under_the_same_time_are_noticed(copied: Path) -> None:
    files = open_files(copied)
    overwrite(copied / "labels.jsonl")
    assert files.fault() is not None


def test_a_touched_file_is_hashed_once(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = open_files(copied)
    assert files.fault() is None
    (copied / "labels.jsonl").touch()
    assert files.fault() is None
    monkeypatch.delattr("service.bundle.open_files.hash_file")
    assert files.fault() is None


def test_a_changed_file_is_named_until_it_is_whole_again(copied: Path) -> None:
    files = open_files(copied)
    path = copied / "labels.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    for _ in range(2):
        assert (
            files.fault() == "labels.jsonl of the bundle was changed on disk: put the bundle back"
        )
    path.write_bytes(content)
    assert files.fault() is None
