"""Opens a folder as a Dataset: finds the files, reads them, says what it looked for.

Knows names, not contents: JSON lines are formats_jsonl.py, the sparse text formats and filter
files formats_xc.py. A folder with two files for one part is refused, never guessed at. Sparse
features without text are no Dataset here, for every model of this project reads text.
"""

from pathlib import Path

from models.data.dataset import Dataset, LabelCatalogue, Points
from models.data.formats_jsonl import read_labels, read_points, write_labels, write_points
from models.data.formats_lines import hash_files
from models.data.formats_xc import Pairs, read_filter, write_filter
from models.errors import DataError

# The second half of each list are the names of the Extreme Classification Repository.
TEXT_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
TRAIN_FILTER_NAMES = ("filter_labels_train.txt", "trn_filter_labels.txt")
TEST_FILTER_NAMES = ("filter_labels_test.txt", "tst_filter_labels.txt")


def open_dataset(folder: Path) -> Dataset:
    """Reads `trn`, `lbl`, and `tst` and the filter files where they are there."""
    if not folder.is_dir():
        raise DataError(folder, None, "a folder with a data set", _describe(folder))
    train_path = _find_needed(folder, "trn")
    label_path = _find_needed(folder, "lbl")
    test_path = _find(folder, _text_names("tst"))
    labels = read_labels(label_path)
    if not len(labels):
        raise DataError(label_path, 1, "at least one label", "the end of the file")
    train = read_points(train_path, len(labels))
    if not len(train):
        raise DataError(train_path, 1, "at least one training point", "the end of the file")
    test = read_points(test_path, len(labels)) if test_path else None
    train_filter_path = _find(folder, TRAIN_FILTER_NAMES)
    test_filter_path = _find(folder, TEST_FILTER_NAMES)
    found = (train_path, label_path, test_path, train_filter_path, test_filter_path)
    return Dataset(
        name=folder.resolve().name,
        train=train,
        test=test,
        labels=labels,
        train_filter=_read_filter(train_filter_path, train, labels),
        test_filter=_read_filter(test_filter_path, test, labels),
        sha256=hash_files(path for path in found if path),
    )


def write_dataset(folder: Path, dataset: Dataset) -> None:
    """Writes a folder that `open_dataset` reads back; the folder must not hold one already."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for part in ("trn", "tst", "lbl") for name in _text_names(part)]
    taken = _find_all(folder, (*names, *TRAIN_FILTER_NAMES, *TEST_FILTER_NAMES))
    if taken:
        raise DataError(folder, None, "a folder without a data set in it", taken[0].name)
    write_labels(folder / "lbl.jsonl.gz", dataset.labels)
    write_points(folder / "trn.jsonl.gz", dataset.train)
    if dataset.test is not None:
        write_points(folder / "tst.jsonl.gz", dataset.test)
    if dataset.train_filter is not None:
        write_filter(folder / TRAIN_FILTER_NAMES[0], dataset.train_filter)
    if dataset.test_filter is not None:
        write_filter(folder / TEST_FILTER_NAMES[0], dataset.test_filter)


def _read_filter(path: Path | None, points: Points | None, labels: LabelCatalogue) -> Pairs | None:
    if path is None:
        return None
    if points is None:
        raise DataError(path, None, "test points beside a test filter", "no tst file")
    return read_filter(path, len(points), len(labels))


def _text_names(part: str) -> tuple[str, ...]:
    return tuple(part + ending for ending in TEXT_ENDINGS)


def _find_needed(folder: Path, part: str) -> Path:
    names = _text_names(part)
    path = _find(folder, names)
    if path is None:
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "an empty folder"
        raise DataError(folder, None, f"one of {', '.join(names)}", there)
    return path


def _find(folder: Path, names: tuple[str, ...]) -> Path | None:
    found = _find_all(folder, names)
    if len(found) > 1:
        both = " and ".join(path.name for path in found)
        raise DataError(folder, None, f"only one of {', '.join(names)}", both)
    return found[0] if found else None


def _find_all(folder: Path, names: tuple[str, ...]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def _describe(path: Path) -> str:
    return "a file" if path.exists() else "nothing of that name"
