"""Which rows have a value in a field of their metadata: an inverted index.

Values are texts, numbers and booleans; a list stands for each of its members. What else metadata
holds (objects, null) cannot be asked for. `1` and `1.0` are one value, `1` and `true` are two.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.core.labels import Label

Value = str | int | float | bool
Conditions = Mapping[str, Value | Sequence[Value]]
_Key = tuple[str, bool, Value]

NO_ROWS: Final = np.empty(0, np.int64)


class FieldIndex:
    """The labels of a bundle; built in one pass, then only read."""

    def __init__(self, labels: Iterable[Label]) -> None:
        found: dict[_Key, list[int]] = {}
        for row, label in enumerate(labels):
            if label.metadata:
                for key in keys_of(label.metadata):
                    found.setdefault(key, []).append(row)
        self._rows = {key: np.unique(np.array(rows, np.int64)) for key, rows in found.items()}

    def rows_where(self, conditions: Conditions) -> NDArray[np.int64]:
        """Rows that meet every condition, rising; a field meets one by any of its values."""
        of_fields = sorted(map(self._rows_of, _asked(conditions)), key=len)
        if not of_fields:
            raise ValueError("no condition was given: name at least one field")
        kept = of_fields[0]  # the fewest, each looked up among the others
        for rows in of_fields[1:]:
            places = np.minimum(rows.searchsorted(kept), max(len(rows) - 1, 0))
            kept = kept[rows[places] == kept] if len(rows) else rows
        return kept

    def _rows_of(self, keys: list[_Key]) -> NDArray[np.int64]:
        """Rows with any of the values of one field, rising."""
        found = [self._rows[key] for key in keys if key in self._rows]
        if len(found) == 1:
            return found[0]
        return np.unique(np.concatenate(found)) if found else NO_ROWS


class GrowingFieldIndex:
    """Labels that come and go: one writer adds, readers tell which entries still hold.

    Lists only grow, so a reader needs no lock; an entry names the very label it is of.
    """

    def __init__(self) -> None:
        self._entries: dict[_Key, list[tuple[int, Label]]] = {}

    def add(self, row: int, label: Label) -> None:
        """Enter a label under its row."""
        for key in keys_of(label.metadata):
            self._entries.setdefault(key, []).append((row, label))

    def entries_where(self, conditions: Conditions) -> list[tuple[int, Label]]:
        """Entries, old ones too, whose label meets every condition."""
        kept: dict[int, tuple[int, Label]] | None = None
        for keys in _asked(conditions):
            entries = (entry for key in keys for entry in self._entries.get(key, [])[:])
            # by the identity of the label, for one row may have had several
            of_field = {id(entry[1]): entry for entry in entries}
            kept = of_field if kept is None else {i: kept[i] for i in kept.keys() & of_field.keys()}
        return list((kept or {}).values())


def keys_of(metadata: Mapping[str, Any]) -> Iterator[_Key]:
    """What a label is found by.

    >>> sorted(keys_of({"year": 1851, "tags": ["sea", "sea"], "size": {"cm": 3}}))
    [('tags', False, 'sea'), ('year', False, 1851)]
    """
    found = set()
    for field, value in metadata.items():
        for each in value if isinstance(value, list) else (value,):
            if isinstance(each, str | int | float):
                found.add((field, isinstance(each, bool), each))
    return iter(found)


def meets(metadata: Mapping[str, Any], conditions: Conditions) -> bool:
    """Whether one label's metadata meets every condition, as `FieldIndex` would find it.

    >>> meets({"year": 1851, "tags": ["sea"]}, {"tags": ["land", "sea"]})
    True
    """
    found = set(keys_of(metadata))
    return all(not found.isdisjoint(keys) for keys in _asked(conditions))


def _asked(conditions: Conditions) -> Iterator[list[_Key]]:
    for field, wanted in conditions.items():
        values = [wanted] if isinstance(wanted, str | int | float) else wanted
        yield [(field, isinstance(value, bool), value) for value in values]
