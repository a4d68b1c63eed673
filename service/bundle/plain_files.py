"""Reads the files of a bundle: plain files only, no links, and never more bytes than allowed.

A bundle folder may come from anywhere. A link could lead out of it, a named pipe could block the
process for ever, and a file that grows while it is read might never end. All three are refused.
"""

import os
from pathlib import Path
from typing import Any, BinaryIO, Final

from service.errors import FileCorrupt, FileMissing, ManifestInvalid
from service.regular_files import NotRegular, open_regular, read_at_most
from service.strict_json import NotJson, parse

MAX_JSON_BYTES: Final = 16 << 20
"""A choice, above any real manifest."""


def open_plain(path: Path) -> BinaryIO:
    """Open a file for reading, unbuffered.

    Raises FileMissing, and FileCorrupt if it is not a plain file or cannot be read.
    """
    try:
        return open_regular(path, os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        raise FileMissing(f"{path} is not there") from None
    except OSError as exc:
        if path.is_symlink():
            raise _not_plain(path) from exc
        raise FileCorrupt(f"{path} cannot be read: {exc.strerror}") from exc
    except NotRegular:
        raise _not_plain(path) from None


def read_plain(path: Path, max_bytes: int) -> bytes:
    """Read a whole plain file; raises FileMissing, and FileCorrupt if it is over `max_bytes`."""
    with open_plain(path) as file:
        content = read_at_most(file, max_bytes)
    if content is None:
        raise FileCorrupt(f"{path} has over {max_bytes} bytes")
    return content


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
    except NotJson as exc:
        raise ManifestInvalid(f"{path} is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise ManifestInvalid(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _not_plain(path: Path) -> FileCorrupt:
    return FileCorrupt(f"{path} is not a plain file (links and folders are refused)")
