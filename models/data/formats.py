"""Opens a folder as a Dataset, and writes one.

This module knows the names of the files. formats_jsonl.py reads JSON lines, formats_xc.py filter
files. It refuses a folder with two files for one part and never guesses. It reads no sparse
features, because every model of this project reads text.
"""

from pathlib import Path

from models.data.dataset import Dataset, LabelCatalogue, Points
from models.data.formats_jsonl import read_labels, read_points, write_labels, write_points
from models.data.formats_lines import hash_files
from models.data.formats_xc import Pairs, read_filter, write_filter
from models.errors import DataError

# Both spellings of filter files occur in data sets of the Extreme Classification Repository.
TEXT_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
TRAIN_FILTER_NAMES = ("filter_labels_train.txt", "trn_filter_labels.txt")
TEST_FILTER_NAMES = ("filter_labels_test.txt", "tst_filter_labels.txt")


def open_dataset(folder: Path) -> Dataset:
    """Read the files `trn` and `lbl`, and `tst` and the filter files where the folder has them.

    Raises DataError where a file is missing, double or wrong.
    """
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
    paths = (train_path, label_path, test_path, train_filter_path, test_filter_path)
    return Dataset(
        name=folder.resolve().name,
        train=train,
        test=test,
        labels=labels,
        train_filter=_read_filter(train_filter_path, train, labels),
        test_filter=_read_filter(test_filter_path, test, labels),
        sha256=hash_files(path for path in paths if path),
    )


def write_dataset(folder: Path, dataset: Dataset) -> None:
    """Write a folder that `open_dataset` reads. Raises DataError where it holds a data set."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for part in ("trn", "tst", "lbl") for name in _text_names(part)]
    old_files = _find_all(folder, (*names, *TRAIN_FILTER_NAMES, *TEST_FILTER_NAMES))
    if old_files:
        raise DataError(folder, None, "a folder without a data set in it", old_files[0].name)
    write_labels(folder / "lbl.jsonl.gz", dataset.labels)
    write_points(folder / "trn.jsonl.gz", dataset.train)
    if dataset.test is not None:
        write_points(folder / "tst.jsonl.gz", dataset.test)
    if dataset.train_filter is not None:
        write_filter(folder / TRAIN_FILTER_NAMES[0], dataset.train_filter)
    if dataset.test_filter is not None:
        write_filter(folder / TEST_FILTER_NAMES[0], dataset.test_filter)


def text_file(folder: Path, part: str) -> Path:
    """The file of the part `trn`, `tst` or `lbl`; the folder where it has none."""
    return _find(folder, _text_names(part)) or folder


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
        entries = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "an empty folder"
        raise DataError(folder, None, f"one of {', '.join(names)}", entries)
    return path


def _find(folder: Path, names: tuple[str, ...]) -> Path | None:
    paths = _find_all(folder, names)
    if len(paths) > 1:
        both = " and ".join(path.name for path in paths)
        raise DataError(folder, None, f"only one of {', '.join(names)}", both)
    return paths[0] if paths else None


def _find_all(folder: Path, names: tuple[str, ...]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def _describe(path: Path) -> str:
    return "a file" if path.exists() else "nothing of that name"
