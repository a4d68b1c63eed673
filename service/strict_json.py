"""Parses JSON that every program reads alike: the one reader of bodies and of a bundle's files.

RFC 8259 leaves open what a repeated name or a very large number means, so one program takes the
first value and another the last, and one keeps a number that another rounds. Here each of these is
NotJson, and so are NaN, half a surrogate pair, a byte order mark and lists without end. The
sentence names the place.
"""

import json
import math
import re
from typing import Any, Final

import orjson

MAX_NESTING: Final = 32
"""Lists and objects inside each other. A choice, far above any real document."""
MAX_WHOLE: Final = 2**63
"""Whole numbers stay below it in size: a longer one fits no array, and most programs round it."""

_BOM: Final = b"\xef\xbb\xbf"
_TO_ZEROS: Final = bytes.maketrans(b"123456789", b"000000000")
_LONG: Final = b"0" * len(str(MAX_WHOLE))
"""As many digits as the shortest whole number that is too large, after `_TO_ZEROS`."""
_NO_NUMBER: Final = re.compile("NaN|Infinity")
_SHOWN: Final = 80
"""Characters of a name, a number or a place that an error shows. A choice."""


class NotJson(ValueError):
    """The text is not JSON, or not JSON that every program reads alike."""


class _Fault(str):
    """The sentence on a fault, in the place of the value at fault."""

    __slots__ = ()


_NESTED: Final = frozenset((dict, list))
_MARKED: Final = (dict, list, _Fault)


def parse(raw: bytes) -> Any:
    """Parse a JSON document in UTF-8; raises NotJson.

    >>> parse(b'{"a": {"b": 1, "b": 2}}')
    Traceback (most recent call last):
    service.strict_json.NotJson: a: the name 'b' stands twice in one object
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise NotJson(_why(raw, exc)) from None
    # Nearly every small request passes here. A colon inside a text only leads to the full check.
    n_objects = raw.count(b"{")
    if (
        n_objects > 1
        or n_objects + raw.count(b"[") > MAX_NESTING
        or raw.count(b":") != (len(value) if isinstance(value, dict) else 0)
        or _has_long_number(raw)
    ):
        _check(raw, value)
    return value


def outside_strings(raw: bytes) -> bytes:
    """A JSON document without its strings, and without the quotes around them.

    >>> outside_strings(b'{"a:": [1, "]"]}')
    b'{: [1, ]}'
    """
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(raw.split(b'"')[::2])


def _has_long_number(raw: bytes) -> bool:
    """False if no whole number has so many digits that it may be too large."""
    zeros = raw.translate(_TO_ZEROS)
    # Fractions are often as long: `json.dumps` writes up to 20 digits of a small float64.
    return _LONG in zeros and _LONG in zeros.replace(b"." + _LONG, b".")


def _check(raw: bytes, value: Any) -> None:
    """Refuse what orjson takes and this reader does not; `value` is what orjson made of `raw`."""
    n_names = _count_names([value], MAX_NESTING + 1)
    if n_names == math.inf:
        raise NotJson(_first_fault(value) or "")
    # A name that stands twice is one name in the value and has two colons in the text.
    if n_names == raw.count(b":") and not _has_long_number(raw):
        return
    bare = outside_strings(raw)
    long = _has_long_number(bare)
    if n_names == bare.count(b":") and not long:
        return
    whole = _whole if long else None  # without a hook a million numbers are read ten times as fast
    fault = _first_fault(json.loads(raw, object_pairs_hook=_object, parse_int=whole))
    if fault is not None:
        raise NotJson(fault)


def _count_names(value: Any, levels: int) -> float:
    """How many names all objects in a list or object have; infinite if it has more levels."""
    n_names: float = len(value) if isinstance(value, dict) else 0
    children = value.values() if isinstance(value, dict) else value
    if _NESTED.isdisjoint(map(type, children)):  # a long list of texts or numbers, mostly
        return n_names
    for child in children:
        if type(child) in _NESTED:
            n_names += _count_names(child, levels - 1) if levels > 1 else math.inf
    return n_names


def _object(pairs: list[tuple[str, Any]]) -> Any:
    value_by_name: dict[str, Any] = {}
    for name, value in pairs:
        if name in value_by_name:
            return _Fault(f"the name {name[:_SHOWN]!r} stands twice in one object")
        value_by_name[name] = value
    return value_by_name


def _whole(digits: str) -> Any:
    if len(digits) > len(_LONG) + 1 or not -MAX_WHOLE < int(digits) < MAX_WHOLE:
        return _Fault(f"the whole number {digits[:_SHOWN]} is too large")
    return 0


def _first_fault(value: Any, place: tuple[str | int, ...] = ()) -> str | None:
    """The sentence on the first fault in a document, after its place; None if there is none."""
    if isinstance(value, _Fault):
        return f"{place_of(place)}: {value}" if place else str(value)
    if type(value) not in _NESTED:
        return None
    if len(place) >= MAX_NESTING:
        return f"{place_of(place)[:_SHOWN]}: lists and objects are nested over {MAX_NESTING} deep"
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(child, _MARKED):
            fault = _first_fault(child, (*place, key))
            if fault is not None:
                return fault
    return None


def place_of(path: tuple[str | int, ...]) -> str:
    """A path in a document as people write it.

    >>> place_of(("labels", 3, "metadata", "year"))
    'labels[3].metadata.year'
    """
    parts = [f"[{part}]" if isinstance(part, int) else f".{part[:_SHOWN]}" for part in path]
    return "".join(parts).removeprefix(".")


def _why(raw: bytes, exc: orjson.JSONDecodeError) -> str:
    """A sentence on what orjson refused, with its place."""
    if raw.startswith(_BOM):
        return "it begins with a byte order mark: send it without"
    try:
        text = raw.decode()
    except UnicodeDecodeError as fault:
        return f"byte {fault.start} is not UTF-8 ({raw[fault.start]:#04x})"
    where = f"line {exc.lineno} column {exc.colno}"
    if word := _NO_NUMBER.match(text, exc.pos):
        return f"{word[0]} is not a number of JSON: {where}"
    before = outside_strings(text[: exc.pos].encode())
    depth = before.count(b"[") + before.count(b"{") - before.count(b"]") - before.count(b"}")
    if depth > MAX_NESTING:
        return f"lists and objects are nested over {MAX_NESTING} deep: {where}"
    return f"{exc.msg}: {where}"
