from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from service.core.labels.labels import LABELS_FILE, OFFSETS_FILE, Label, LabelStore, write_labels
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


@pytest.mark.parametrize(
    "offsets", [[0, 0, 5, 60], [-5, 5, 20, 60], [0, 40, 20, 60], [0, 2**62, 40, 60]]
)
def test_offsets_that_do_not_rise_are_refused(folder: Path, offsets: list[int]) -> None:
    size = (folder / LABELS_FILE).stat().st_size
    np.save(folder / OFFSETS_FILE, np.array([*offsets[:-1], size], np.int64))
    with pytest.raises(BundleMismatch, match=OFFSETS_FILE):
        LabelStore(folder)


@pytest.mark.parametrize(
    "line", [b"not json\n", b"[1]\n", b'{"id": "x"}\n', b'{"id":1,"text":2}\n']
)
def test_a_line_that_is_no_label_is_named_by_its_row(tmp_path: Path, line: bytes) -> None:
    (tmp_path / LABELS_FILE).write_bytes(line)
    np.save(tmp_path / OFFSETS_FILE, np.array([0, len(line)], np.int64))
    with pytest.raises(BundleMismatch, match=r"labels\.jsonl: row 0"):
        LabelStore(tmp_path)[0]


def test_an_archive_or_a_pickle_in_place_of_the_offsets_is_refused(folder: Path) -> None:
    with (folder / OFFSETS_FILE).open("wb") as file:
        np.savez_compressed(file, np.zeros(1 << 20))
    with pytest.raises(BundleMismatch, match=OFFSETS_FILE):
        LabelStore(folder)
    np.save(folder / OFFSETS_FILE, np.array([{}]), allow_pickle=True)
    with pytest.raises(BundleMismatch, match=OFFSETS_FILE):
        LabelStore(folder)


@pytest.mark.parametrize("shape", ["(2**70,)", "(-1,)", "(10**12,)", "()", "'", "(" * 500])
def test_a_header_that_claims_the_impossible_is_refused(folder: Path, shape: str) -> None:
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    head = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    (folder / OFFSETS_FILE).write_bytes(head + header + bytes(32))
    with pytest.raises(BundleMismatch, match=OFFSETS_FILE):
        LabelStore(folder)


def test_no_labels_at_all_are_refused(tmp_path: Path) -> None:
    (tmp_path / LABELS_FILE).touch()
    np.save(tmp_path / OFFSETS_FILE, np.array([0, 0], np.int64))
    with pytest.raises(BundleMismatch, match=r"labels\.jsonl"):
        LabelStore(tmp_path)


def test_metadata_is_scanned_as_each_label_has_it(tmp_path: Path) -> None:
    labels = [
        Label(f"L{i}", 'a\n"line"', {"n": i, "text": "x\ny"} if i % 3 else {}) for i in range(1500)
    ]
    write_labels(tmp_path, labels)
    assert list(LabelStore(tmp_path).scan_metadata()) == [label.metadata for label in labels]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b'{"id": "b", "text": ""', "row 1 is not a label"),
        (b'{"id": "b", "text": ""}, {"id": "b"}', "row 1 is not a label"),
        (b'{"id": "b", "text": "", "metadata": [1]}', "row 1: metadata must be an object"),
        (b"7", "row 1 is not a label"),
    ],
)
def test_a_scan_of_metadata_names_the_row_that_is_wrong(
    tmp_path: Path, row: bytes, said: str
) -> None:
    lines = [b'{"id": "a", "text": "a"}', row, b'{"id": "c", "text": "c"}']
    (tmp_path / LABELS_FILE).write_bytes(b"\n".join([*lines, b""]))
    ends = np.cumsum([0, *(len(line) + 1 for line in lines)])
    np.save(tmp_path / OFFSETS_FILE, ends.astype(np.int64))
    with pytest.raises(BundleMismatch, match=said):
        list(LabelStore(tmp_path).scan_metadata())
