from pathlib import Path

import numpy as np
import pytest

from service.core.labels import label_directory
from service.core.labels.label_directory import (
    HASH_ROWS_FILE,
    HASHES_FILE,
    LabelDirectory,
    write_directory,
)
from service.core.labels.labels import Label, LabelStore, write_labels
from service.errors import BundleMismatch

IDS = [f"id/{i}" for i in range(500)]


@pytest.fixture
def labels(tmp_path: Path) -> LabelStore:
    write_labels(tmp_path, [Label(name, "text") for name in IDS])
    return LabelStore(tmp_path)


@pytest.mark.parametrize("sealed", [True, False])
def test_every_id_leads_to_its_row_and_no_other_does(labels, tmp_path, sealed) -> None:
    if sealed:
        assert write_directory(tmp_path, IDS) == [HASHES_FILE, HASH_ROWS_FILE]
    directory = LabelDirectory.open(tmp_path, labels)
    assert [directory.row_of(name) for name in IDS] == list(range(500))
    assert directory.row_of("id/500") is None
    assert directory.row_of("") is None


def test_ids_that_share_a_hash_are_told_apart(labels, tmp_path, monkeypatch) -> None:
    few = lambda text: np.uint64(len(text) % 2)  # noqa: E731
    monkeypatch.setattr(label_directory, "hash_id", few)
    monkeypatch.setattr(
        label_directory, "hash_ids", lambda texts: np.array([few(t) for t in texts], np.uint64)
    )
    directory = LabelDirectory.of(labels)
    assert [directory.row_of(name) for name in IDS] == list(range(500))
    assert directory.row_of("id/5000") is None


@pytest.mark.parametrize("hashes_of", [IDS, [*IDS[:-1], "id/3"], None])
def test_two_labels_of_one_id_are_refused_whatever_the_files_say(tmp_path, hashes_of) -> None:
    write_labels(tmp_path, [Label(name, "text") for name in [*IDS[:-1], "id/3"]])
    if hashes_of is not None:
        write_directory(tmp_path, hashes_of)
    says = "are of other labels" if hashes_of is IDS else "rows 3 and 499 have one id, 'id/3'"
    with pytest.raises(BundleMismatch, match=says):
        LabelDirectory.open(tmp_path, LabelStore(tmp_path))


@pytest.mark.parametrize(
    "line",
    [
        '{"id": 7, "text": "t"}',
        '{"id": "a"}',
        '{"id": "a", "text": null}',
        '{"id": "a", "text": "t", "metadata": null}',
        '{"id": "a", "text": "t", "metadata": [1]}',
        '{"text": "t"}',
        "[]",
    ],
)
def test_a_line_that_is_no_label_is_refused_when_the_bundle_is_opened(tmp_path, line) -> None:
    lines = [b'{"id": "first", "text": "t"}\n', line.encode() + b"\n"]
    (tmp_path / "labels.jsonl").write_bytes(b"".join(lines))
    np.save(tmp_path / "labels.offsets.npy", np.cumsum([0, *map(len, lines)]))
    with pytest.raises(BundleMismatch, match="row 1"):
        LabelDirectory.open(tmp_path, LabelStore(tmp_path))


def test_a_row_that_stands_twice_is_refused(labels, tmp_path) -> None:
    write_directory(tmp_path, IDS)
    rows = np.load(tmp_path / HASH_ROWS_FILE)
    hashes = np.load(tmp_path / HASHES_FILE)
    rows[1], hashes[1] = rows[0], hashes[0]
    np.save(tmp_path / HASH_ROWS_FILE, rows)
    np.save(tmp_path / HASHES_FILE, hashes)
    with pytest.raises(BundleMismatch, match="names a row twice"):
        LabelDirectory.open(tmp_path, labels)


def test_files_that_do_not_fit_the_labels_are_refused(labels, tmp_path) -> None:
    write_directory(tmp_path, IDS[:-1])
    with pytest.raises(BundleMismatch, match="499"):
        LabelDirectory.open(tmp_path, labels)
    np.save(tmp_path / HASHES_FILE, np.arange(500, dtype=np.uint64)[::-1].copy())
    np.save(tmp_path / HASH_ROWS_FILE, np.arange(500))
    with pytest.raises(BundleMismatch, match="does not rise"):
        LabelDirectory.open(tmp_path, labels)
