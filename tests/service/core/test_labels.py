from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from service.core.labels import LABELS_FILE, OFFSETS_FILE, Label, LabelStore, write_labels
from service.errors import BundleMismatch

LABELS = [
    Label("a/1", "plain"),
    Label("b", 'quotes " and\nnewlines', {"year": 1851, "tags": ["x"]}),
    Label("c", "日本語"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert write_labels(tmp_path, LABELS) == [LABELS_FILE, OFFSETS_FILE]
    return tmp_path


def test_rows_come_back_as_written(folder: Path) -> None:
    store = LabelStore(folder)
    assert len(store) == 3
    assert [store[row] for row in range(3)] == LABELS


def test_lines_are_plain_json_for_other_tools(folder: Path) -> None:
    assert (folder / LABELS_FILE).read_bytes().splitlines()[0] == b'{"id":"a/1","text":"plain"}'


def test_many_threads_read_the_same(folder: Path) -> None:
    store = LabelStore(folder)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: store[i % 3], range(300)))
    assert found == LABELS * 100


@pytest.mark.parametrize(
    "offsets",
    [
        np.array([0, 5], np.int32),
        np.array([0], np.int64),
        np.array([[0, 5]], np.int64),
        np.array([0, 5], np.int64),
    ],
)
def test_offsets_that_do_not_fit_are_refused_by_name(
    folder: Path, offsets: "np.ndarray[tuple[int], np.dtype[np.int64]]"
) -> None:
    np.save(folder / OFFSETS_FILE, offsets)
    with pytest.raises(BundleMismatch, match=OFFSETS_FILE):
        LabelStore(folder)
