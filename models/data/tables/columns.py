"""Says which column of a table is what: by name where the user names it, else by usual names."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from models.config import TableConfig
from models.errors import TableError

NAMES: Final = {
    "text": ("text", "query", "title", "question", "name", "sentence", "utterance", "content"),
    "content": ("content", "description", "abstract", "body"),
    "labels": (
        *("labels", "label", "tags", "tag", "target", "targets", "categories", "category"),
        *("classes", "class", "subjects", "subject", "topics", "topic"),
    ),
    "id": ("id", "uid", "key", "doc_id"),
    "weight": ("weight", "count", "clicks"),
    "time": ("time", "timestamp", "date", "created", "created_at"),
}
"""Usual names of each column, the likeliest first. A choice, from public data sets."""

OPTION: Final = {"labels": "--labels", "text": "--text"}


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of a table's columns; empty for one that it has not."""

    text: str
    labels: str
    content: str = ""
    id: str = ""
    weight: str = ""
    time: str = ""


def choose_columns(path: Path, names: Sequence[str], table: TableConfig) -> Columns:
    """The columns of a file with these names. Raises TableError."""
    chosen = Columns(_needed(path, names, table, "text"), _needed(path, names, table, "labels"))
    for what in ("content", "id", "weight", "time"):
        name = getattr(table, what)
        if name and name not in names:
            raise TableError(path, None, name, f"a column for {what}", ", ".join(names))
        if not name and what in ("content", "id"):
            # Weights and times change what is learnt: they count only where they are named.
            free = [each for each in names if each not in (chosen.text, chosen.labels)]
            name = next((each for each in free if each.lower() in NAMES[what]), "")
        chosen = replace(chosen, **{what: name})
    return chosen


def _needed(path: Path, names: Sequence[str], table: TableConfig, what: str) -> str:
    name = getattr(table, what)
    if name:
        if name not in names:
            raise TableError(path, None, name, f"a column for {what}", ", ".join(names))
        return str(name)
    by_name = {each.lower(): each for each in names}
    likely = [by_name[usual] for usual in NAMES[what] if usual in by_name]
    if not likely:
        raise TableError(
            path, None, None, f"a column for {what} (name it with {OPTION[what]})", ", ".join(names)
        )
    if what == "labels" and len(likely) > 1:
        raise TableError(
            path,
            None,
            None,
            f"one column for labels (name it with {OPTION[what]})",
            " and ".join(likely),
        )
    return likely[0]
