"""A table of labels: the ids, texts and metadata of what the rows of another table name."""

import re
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from models.data.dataset import LabelCatalogue
from models.data.tables.reading import read_file
from models.errors import TableError
from service.core.labels.label_id import fault_of_id

if TYPE_CHECKING:
    import pyarrow as pa

ID_NAMES: Final = ("id", "uid", "key", "uri", "label_id")
TEXT_NAMES: Final = ("text", "title", "name", "label", "preflabel")
CONTENT_NAMES: Final = ("content", "description")

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def id_of(name: str) -> str:
    """The id of a label that has only a name: the name itself if a URL can carry it.

    Else it is what can be carried of it, and eight digits of a hash, so that names stay apart.

    >>> id_of("whales"), id_of("\\tsea/../ice")
    ('whales', 'sea-..-ice-b5b97acc')
    """
    if fault_of_id(name) is None:
        return name
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{_UNSAFE.sub('-', name).strip('-')[:80]}-{digest}"


def catalogue_of_names(names: Sequence[str]) -> LabelCatalogue:
    """Labels whose texts are their names, in this order."""
    return LabelCatalogue([id_of(name) for name in names], list(names), [""] * len(names))


def read_label_table(path: Path) -> LabelCatalogue:
    """The labels in the order of their rows; other columns become metadata.

    Raises TableError.
    """
    table = read_file(path)
    by_name = {name.lower(): name for name in table.column_names}
    ids = _column(path, by_name, ID_NAMES, "ids")
    text = _column(path, by_name, TEXT_NAMES, "texts")
    content = next((by_name[name] for name in CONTENT_NAMES if name in by_name), "")
    uids = _texts(table, ids)
    for row, uid in enumerate(uids, 1):
        if (fault := fault_of_id(uid)) is not None:
            raise TableError(path, row, ids, "an id that a URL can carry", f"{uid!r}: {fault}")
    if len(set(uids)) < len(uids):
        first_row = {uid: row for row, uid in reversed(list(enumerate(uids, 1)))}
        row, twice = next((n, uid) for n, uid in enumerate(uids, 1) if first_row[uid] != n)
        raise TableError(path, row, ids, "an id of its own for each label", f"{twice!r} again")
    rest = [name for name in table.column_names if name not in (ids, text, content)]
    return LabelCatalogue(
        uids,
        _texts(table, text),
        _texts(table, content) if content else [""] * len(uids),
        _metadata(table, rest) if rest else None,
    )


def _column(path: Path, by_name: dict[str, str], usual: Sequence[str], what: str) -> str:
    name = next((by_name[each] for each in usual if each in by_name), None)
    if name is None:
        expected = f"a column of the labels' {what}, named one of {', '.join(usual)}"
        raise TableError(path, None, None, expected, ", ".join(by_name.values()))
    return name


def _texts(table: "pa.Table", name: str) -> list[str]:
    return ["" if value is None else str(value) for value in table[name].to_pylist()]


def _metadata(table: "pa.Table", names: Sequence[str]) -> list[dict[str, Any]]:
    """The values of each label, without those that are missing. Numbers of a CSV are numbers."""
    columns = [_values(table[name].to_pylist()) for name in names]
    return [
        {name: value for name, value in zip(names, row, strict=True) if value is not None}
        for row in zip(*columns, strict=True)
    ]


def _values(values: list[Any]) -> list[Any]:
    """JSON values: dates as ISO text; texts that all are numbers or booleans as those."""
    if all(value is None or isinstance(value, str) for value in values):
        there = [value for value in values if value]
        for convert in (_boolean, int, float):
            try:
                converted = {value: convert(value) for value in set(there)}
            except ValueError:
                continue
            return [converted[value] if value else None for value in values]
        return [value or None for value in values]
    return [value.isoformat() if hasattr(value, "isoformat") else value for value in values]


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"
