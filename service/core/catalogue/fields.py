"""An inverted index over metadata: finds the rows that have a value in a field.

Values are texts, numbers and booleans; a list counts as each of its members. Conditions cannot
match other metadata (objects, null). `1` and `1.0` are one value, `1` and `true` are two.
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
"""Labels indexed together, field by field; more no longer fit a processor's cache."""
SPARSE: Final = 4
"""If a group has more (label, field) places than this many times its values, most labels lack most
fields, and indexing value by value is faster. A choice."""


class FieldIndex:
    """Index of a bundle's labels; it is built in one pass and never changes."""

    def __init__(self, metadata: Iterable[Mapping[str, Any]]) -> None:
        """`metadata` yields that of every label, in row order."""
        columns: dict[tuple[str, bool], _Column] = defaultdict(_Column)
        rest, first = iter(metadata), 0
        while group := list(islice(rest, GROUP)):
            _index_group(columns, group, first)
            first += len(group)
        for column in columns.values():
            column.seal()
        self._columns = dict(columns)

    def rows_where(self, conditions: Conditions) -> NDArray[np.int64]:
        """Rows that meet every condition, rising; one of a field's values is enough.

        Raises ValueError if there is no condition.
        """
        by_field = sorted(map(self._rows_of, _keys_by_field(conditions)), key=len)
        if not by_field:
            raise ValueError("no condition was given: name at least one field")
        matches = by_field[0]  # start with the shortest and look its rows up in the others
        for rows in by_field[1:]:
            places = np.minimum(rows.searchsorted(matches), max(len(rows) - 1, 0))
            matches = matches[rows[places] == matches] if len(rows) else rows
        return matches

    def _rows_of(self, keys: list[_Key]) -> NDArray[np.int64]:
        """Rows with any of the values of one field, rising."""
        parts = [rows for key in keys if len(rows := self._rows_with(key))]
        if len(parts) == 1:
            return parts[0]
        return np.unique(np.concatenate(parts)) if parts else NO_ROWS

    def _rows_with(self, key: _Key) -> NDArray[np.int64]:
        field, is_bool, value = key
        column = self._columns.get((field, is_bool))
        return NO_ROWS if column is None else column.rows_with(value)


class _Column:
    """The rows of every value of one field, either its booleans or all its other values.

    `numbers` gives each value a number in the order of appearance.
    """

    def __init__(self) -> None:
        self.numbers: defaultdict[Any, int] = defaultdict(count().__next__)
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._rows = self._starts = NO_ROWS

    def add(self, rows: NDArray[np.int64], values: Sequence[Any]) -> None:
        """Add one value for each row (n,); rows must not fall, also from call to call."""
        numbers = np.fromiter(map(self.numbers.__getitem__, values), np.int64, len(values))
        self._parts.append((rows, numbers))

    def seal(self) -> None:
        """Put the rows of each value side by side; call `add` no more."""
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
        """Rows that have this value, rising."""
        number = self.numbers.get(value)
        if number is None:
            return NO_ROWS
        return self._rows[self._starts[number] : self._starts[number + 1]]


class GrowingFieldIndex:
    """Index of labels that change: one writer adds entries, readers skip the outdated ones.

    Lists only grow, so a reader needs no lock. An entry holds the label object that it indexes, so
    a reader can tell whether it is still the row's label.
    """

    def __init__(self) -> None:
        self._entries: dict[_Key, list[tuple[int, Label]]] = {}

    def add(self, row: int, label: Label) -> None:
        """Add an entry for a label in this row."""
        for key in keys_of(label.metadata):
            self._entries.setdefault(key, []).append((row, label))

    def entries_where(self, conditions: Conditions) -> list[tuple[int, Label]]:
        """(row, label) of all entries, outdated ones too, whose label meets every condition."""
        matches: dict[int, tuple[int, Label]] | None = None
        for keys in _keys_by_field(conditions):
            entries = (entry for key in keys for entry in self._entries.get(key, [])[:])
            # By the label's identity, because one row may have had several labels.
            of_field = {id(entry[1]): entry for entry in entries}
            if matches is not None:
                of_field = {i: matches[i] for i in matches.keys() & of_field.keys()}
            matches = of_field
        return list((matches or {}).values())


def _index_group(
    columns: Mapping[tuple[str, bool], _Column], group: Sequence[Mapping[str, Any]], first: int
) -> None:
    """Index a group of labels from row `first` on, whole fields at once if that is faster."""
    fields = list(dict.fromkeys(chain.from_iterable(group)))
    if len(fields) * len(group) > SPARSE * sum(map(len, group)):
        _index_singly(columns, group, first, None)
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
        # Labels without the field go under None, which no condition can match.
        if kinds <= {str, int, float, NoneType}:
            columns[field, False].add(of_field, values)
        elif kinds <= {bool, NoneType}:
            columns[field, True].add(of_field, values)
        else:
            _index_singly(columns, group, first, field)


def _index_singly(
    columns: Mapping[tuple[str, bool], _Column],
    group: Sequence[Mapping[str, Any]],
    first: int,
    field: str | None,
) -> None:
    """Index a group value by value, for one field, or for all if `field` is None."""
    additions: dict[tuple[str, bool], tuple[list[int], list[Value]]] = {}
    for row, metadata in enumerate(group, first):
        selection = metadata if field is None else {field: metadata.get(field)}
        for name, is_bool, value in keys_of(selection):
            rows, values = additions.setdefault((name, is_bool), ([], []))
            rows.append(row)
            values.append(value)
    for column, (rows, values) in additions.items():
        columns[column].add(np.array(rows, np.int64), values)


def keys_of(metadata: Mapping[str, Any]) -> Iterator[_Key]:
    """The index keys of a label's metadata, each once: (field, whether boolean, value).

    >>> sorted(keys_of({"year": 1851, "tags": ["sea", "sea"], "size": {"cm": 3}}))
    [('tags', False, 'sea'), ('year', False, 1851)]
    """
    keys = set()
    for field, value in metadata.items():
        for each in value if isinstance(value, list) else (value,):
            if isinstance(each, str | int | float):
                keys.add((field, isinstance(each, bool), each))
    return iter(keys)


def meets(metadata: Mapping[str, Any], conditions: Conditions) -> bool:
    """Whether one label's metadata meets every condition, by the rules of `FieldIndex`.

    >>> meets({"year": 1851, "tags": ["sea"]}, {"tags": ["land", "sea"]})
    True
    """
    own_keys = set(keys_of(metadata))
    return all(not own_keys.isdisjoint(keys) for keys in _keys_by_field(conditions))


def _keys_by_field(conditions: Conditions) -> Iterator[list[_Key]]:
    """For each field of the conditions, the keys of its accepted values."""
    for field, accepted in conditions.items():
        values = [accepted] if isinstance(accepted, str | int | float) else accepted
        yield [(field, isinstance(value, bool), value) for value in values]
