"""Finds the files of a data set that is a table: its training rows, its test rows, its labels.

A path names one file, a folder of files of one format, or a folder that Hugging Face's `datasets`
has saved. In a folder, files named `test...` hold test rows, and those named `label...` labels.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from models.errors import DataError

FORMATS: Final = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".json": "json lines",
    ".txt": "fastText lines",
}
COMPRESSED: Final = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
OWN_LAYOUT: Final = ("trn.", "lbl.")
"""How files begin in a folder that `models.data.formats` reads."""

_TEST = ("test", "tst")
_LABELS = ("label", "lbl")


@dataclass(frozen=True, slots=True)
class TableFiles:
    """The files of each part; `test` may be empty, `labels` None."""

    train: list[Path]
    test: list[Path]
    labels: Path | None


def format_of(path: Path) -> str | None:
    """The format that a file's name promises, None where it is none of ours."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes = suffixes[:-1]
    return FORMATS.get(suffixes[-1].lower()) if suffixes else None


def has_own_layout(path: Path) -> bool:
    """Whether a folder holds a data set in this project's own layout."""
    return path.is_dir() and any(
        entry.name.startswith(OWN_LAYOUT) and format_of(entry) == "json lines"
        for entry in path.iterdir()
    )


def find_files(path: Path, label_table: str = "") -> TableFiles:
    """The files of the table at a path. Raises DataError where there is none, or of two formats."""
    labels = Path(label_table) if label_table else None
    if labels is not None and not labels.is_file():
        raise DataError(labels, None, "a table of labels", "no such file")
    if path.is_file():
        _check_format(path)
        return TableFiles([path], [], labels)
    if not path.is_dir():
        raise DataError(path, None, "a table, or a folder of tables", "nothing of that name")
    if (path / "dataset_dict.json").is_file():
        return _saved_dict(path, labels)
    if (path / "state.json").is_file():
        return TableFiles(_saved_files(path), [], labels)
    files = sorted(entry for entry in path.iterdir() if entry.is_file() and format_of(entry))
    test = [file for file in files if file.name.lower().startswith(_TEST)]
    own_labels = [file for file in files if file.name.lower().startswith(_LABELS)]
    train = [file for file in files if file not in test and file not in own_labels]
    if not train:
        names = ", ".join(sorted(entry.name for entry in path.iterdir())) or "an empty folder"
        raise DataError(path, None, f"tables ({', '.join(FORMATS)})", names)
    if labels is None and len(own_labels) > 1:
        both = " and ".join(file.name for file in own_labels)
        raise DataError(path, None, "one table of labels (name it with --label-table)", both)
    formats = {format_of(file) for file in (*train, *test)}
    if len(formats) > 1:
        names = ", ".join(file.name for file in (*train, *test))
        raise DataError(path, None, "tables of one format", names)
    return TableFiles(train, test, labels or (own_labels[0] if own_labels else None))


def _check_format(path: Path) -> None:
    if format_of(path) is None:
        known = ", ".join(FORMATS)
        raise DataError(path, None, f"a name that ends in one of {known} (or .gz, .zst)", path.name)


def _saved_dict(path: Path, labels: Path | None) -> TableFiles:
    names = _json(path / "dataset_dict.json").get("splits", [])
    if "train" not in names:
        raise DataError(path, None, "a split `train`", ", ".join(map(str, names)) or "no split")
    test = _saved_files(path / "test") if "test" in names else []
    return TableFiles(_saved_files(path / "train"), test, labels)


def _saved_files(folder: Path) -> list[Path]:
    """The Arrow files that `datasets` lists in state.json."""
    entries = _json(folder / "state.json").get("_data_files", [])
    files = [folder / str(entry.get("filename", "")) for entry in entries]
    if not files or not all(file.is_file() for file in files):
        raise DataError(folder, None, "the Arrow files that state.json lists", "not all of them")
    return files


def _json(path: Path) -> dict[str, list]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as exc:
        raise DataError(path, None, "a JSON object", str(exc)) from exc
