"""Which rows have a value in a field of their metadata: an inverted index.

Values are texts, numbers and booleans; a list stands for each of its members. What else metadata
holds (objects, null) cannot be asked for. `1` and `1.0` are one value, `1` and `true` are two.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice
from types import NoneType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.core.labels.labels import Label

Value = str | int | float | bool
Conditions = Mapping[str, Value | Sequence[Value]]
_Key = tuple[str, bool, Value]

NO_ROWS: Final = np.empty(0, np.int64)

GROUP: Final = 512
"""Labels entered together, a field at a time; more of them no longer fit a processor's cache."""
SPARSE: Final = 4
"""Above so many places for each value, most labels lack most fields: then they go one by one."""


class FieldIndex:
    """The labels of a bundle; built in one pass, then only read."""

    def __init__(self, metadata: Iterable[Mapping[str, Any]]) -> None:
        """`metadata` is every label's, in row order."""
        columns: dict[tuple[str, bool], _Column] = defaultdict(_Column)
        left, first = iter(metadata), 0
        while group := list(islice(left, GROUP)):
            _enter(columns, group, first)
            first += len(group)
        for column in columns.values():
            column.seal()
        self._columns = dict(columns)

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
        found = [rows for key in keys if len(rows := self._rows_with(key))]
        if len(found) == 1:
            return found[0]
        return np.unique(np.concatenate(found)) if found else NO_ROWS

    def _rows_with(self, key: _Key) -> NDArray[np.int64]:
        field, is_bool, value = key
        column = self._columns.get((field, is_bool))
        return NO_ROWS if column is None else column.rows_with(value)


class _Column:
    """The values of one field, booleans or all others: each has a number, in order of coming."""

    def __init__(self) -> None:
        self.numbers: defaultdict[Any, int] = defaultdict(count().__next__)
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._rows = self._starts = NO_ROWS

    def add(self, rows: NDArray[np.int64], values: Sequence[Any]) -> None:
        """A value of each row (n,); rows do not fall, also from call to call."""
        numbers = np.fromiter(map(self.numbers.__getitem__, values), np.int64, len(values))
        self._parts.append((rows, numbers))

    def seal(self) -> None:
        """Put the rows of each value side by side; nothing may be added any more."""
        rows = np.concatenate([part[0] for part in self._parts])
        numbers = np.concatenate([part[1] for part in self._parts])
        order = np.argsort(numbers, kind="stable")
        rows, numbers = rows[order], numbers[order]
        new = np.ones(len(rows), np.bool_)  # a list may hold a value twice
        new[1:] = (rows[1:] != rows[:-1]) | (numbers[1:] != numbers[:-1])
        self._rows = rows[new]
        self._starts = numbers[new].searchsorted(np.arange(len(self.numbers) + 1))
        self._parts.clear()

    def rows_with(self, value: Value) -> NDArray[np.int64]:
        """Rows that have a value, rising."""
        number = self.numbers.get(value)
        if number is None:
            return NO_ROWS
        return self._rows[self._starts[number] : self._starts[number + 1]]


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


def _enter(
    columns: Mapping[tuple[str, bool], _Column], group: Sequence[Mapping[str, Any]], first: int
) -> None:
    """Add some labels, the first of them in row `first`: whole fields at once where that pays."""
    fields = list(dict.fromkeys(chain.from_iterable(group)))
    if len(fields) * len(group) > SPARSE * sum(map(len, group)):
        _enter_singly(columns, group, first, None)
        return
    rows = np.arange(first, first + len(group))
    for field in fields:
        values = [metadata.get(field) for metadata in group]
        of_field, kinds = rows, set(map(type, values))
        if list in kinds and kinds <= {list, NoneType}:
            lists = [value or () for value in values]
            of_field = np.repeat(rows, list(map(len, lists)))
            values = list(chain.from_iterable(lists))
            kinds = set(map(type, values))
        # Who lacks the field is under None, which nobody can ask for.
        if kinds <= {str, int, float, NoneType}:
            columns[field, False].add(of_field, values)
        elif kinds <= {bool, NoneType}:
            columns[field, True].add(of_field, values)
        else:
            _enter_singly(columns, group, first, field)


def _enter_singly(
    columns: Mapping[tuple[str, bool], _Column],
    group: Sequence[Mapping[str, Any]],
    first: int,
    field: str | None,
) -> None:
    """The same value by value, for one field or for all."""
    found: dict[tuple[str, bool], tuple[list[int], list[Value]]] = {}
    for row, metadata in enumerate(group, first):
        some = metadata if field is None else {field: metadata.get(field)}
        for name, is_bool, value in keys_of(some):
            rows, values = found.setdefault((name, is_bool), ([], []))
            rows.append(row)
            values.append(value)
    for column, (rows, values) in found.items():
        columns[column].add(np.array(rows, np.int64), values)


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
