"""The memory's arrays are mapped as they are, or refused with the file and both values."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from service.core.index.memory_labels import MemoryLabels, open_memory_labels
from service.errors import BundleMismatch

N_ROWS, N_LABELS = 3, 10
NAMES = ("offsets.npy", "labels.npy", "values.npy")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "offsets.npy", np.array([0, 2, 2, 3]))
    np.save(tmp_path / "labels.npy", np.array([4, 9, 0], np.int32))
    np.save(tmp_path / "values.npy", np.array([1.0, 0.5, 0.5], np.float32))
    return tmp_path


def opened(folder: Path) -> MemoryLabels:
    return open_memory_labels([folder / name for name in NAMES], N_ROWS, N_LABELS)


def test_arrays_are_read_as_they_were_written(folder: Path) -> None:
    memory = opened(folder)
    assert memory.offsets.tolist() == [0, 2, 2, 3]
    assert memory.labels.tolist() == [4, 9, 0]
    assert memory.values.tolist() == [1.0, 0.5, 0.5]
    assert not isinstance(memory.labels, np.memmap)


def save(name: str, values: list[float], dtype: type) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / name, np.array(values, dtype))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            save("offsets.npy", [0, 3], np.int64),
            r"offsets.npy describes 1 rows, .* memory.n_rows 3",
        ),
        (save("offsets.npy", [0, 2, 1, 3], np.int64), "offsets.npy: expected offsets that rise"),
        (save("offsets.npy", [1, 2, 2, 3], np.int64), "offsets.npy: expected offsets that rise"),
        (save("offsets.npy", [0, 2, 2, 3], np.int32), "offsets.npy holds int32 .* of int64"),
        (save("labels.npy", [4, 9], np.int32), r"labels.npy has 2 entries, .* ends at 3"),
        (save("values.npy", [1] * 4, np.float32), r"values.npy has 4 entries, .* ends at 3"),
        (save("labels.npy", [4, 10, 0], np.int32), r"label rows 0 to 10, the index has 10"),
        (save("labels.npy", [4, -1, 0], np.int32), r"label rows -1 to 4, the index has 10"),
        (save("values.npy", [1, 2, 1], np.float32), r"values.npy .* outside \[0, 1\]"),
        (save("values.npy", [1, np.nan, 1], np.float32), r"values.npy .* outside \[0, 1\]"),
        (lambda folder: (folder / "labels.npy").write_bytes(b"x"), "labels.npy is not an array"),
        (lambda folder: (folder / "labels.npy").unlink(), "labels.npy is not an array"),
        (
            lambda folder: np.save(folder / "labels.npy", np.ones((1, 3), np.int32)),
            r"labels.npy holds int32 of shape \(1, 3\)",
        ),
        (
            lambda folder: np.save(
                folder / "labels.npy", np.array([{}], object), allow_pickle=True
            ),
            "labels.npy is not an array",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    folder: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(folder)
    with pytest.raises(BundleMismatch, match=words):
        opened(folder)
