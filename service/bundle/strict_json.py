"""Reads the JSON files of a bundle: valid UTF-8, no repeated names, no NaN, bounded nesting.

Python's own parser accepts a repeated name (it takes the last, another program may take the first),
NaN, half a surrogate pair, and lists nested as deep as its stack. Code that hashes, compares or
prints the result can then fail. Here each of these is a ManifestInvalid that names the file.
"""

import json
import math
from pathlib import Path
from typing import Any, Final

from service.bundle.plain_files import read_plain
from service.errors import FileCorrupt, FileMissing, ManifestInvalid

MAX_JSON_BYTES: Final = 16 << 20
"""A choice, above any real manifest."""
MAX_NESTING: Final = 32
"""A choice, far above any real manifest."""
MAX_WHOLE: Final = 2**63
"""Whole numbers stay below it in size: a longer one fits no array, and the time to print it grows
with the square of its digits."""


def read_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read the JSON object in a plain file; raises ManifestInvalid, FileMissing."""
    try:
        raw = read_plain(path, max_bytes)
    except FileMissing:
        raise
    except FileCorrupt as exc:
        raise ManifestInvalid(exc.detail) from exc
    return parse_object(path, raw)


def parse_object(path: Path, raw: bytes) -> dict[str, Any]:
    """Parse the JSON object that was read from `path`; raises ManifestInvalid."""
    try:
        value = parse(raw)
    except (ValueError, RecursionError) as exc:
        raise ManifestInvalid(f"{path} is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise ManifestInvalid(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def parse(raw: bytes) -> Any:
    """Parse a JSON document in UTF-8; raises ValueError or RecursionError.

    >>> parse(b'{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: the name 'a' stands twice in one object
    """
    value = json.loads(
        raw.decode("utf-8"),
        object_pairs_hook=_object,
        parse_int=_whole,
        parse_float=_real,
        parse_constant=_constant,
    )
    _check_nesting(value)
    return value


def _check_nesting(document: Any) -> None:
    level = [document]
    for _ in range(MAX_NESTING + 1):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        for value in level:
            if isinstance(value, str):
                _check_text(value)
        if not level:
            return
    raise ValueError(f"it is nested over {MAX_NESTING} deep")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value_by_name: dict[str, Any] = {}
    for name, value in pairs:
        _check_text(name)
        if name in value_by_name:
            raise ValueError(f"the name {name[:80]!r} stands twice in one object")
        value_by_name[name] = value
    return value_by_name


def _check_text(text: str) -> None:
    if not text.isascii():
        text.encode()  # half a surrogate pair raises UnicodeEncodeError, a ValueError


def _whole(digits: str) -> int:
    value = int(digits) if len(digits) <= 20 else MAX_WHOLE
    if not -MAX_WHOLE < value < MAX_WHOLE:
        raise ValueError(f"the whole number {digits[:80]} is too large")
    return value


def _real(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:80]} is too large")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")
