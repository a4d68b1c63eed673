"""Reads and writes files of lines for all formats; the suffix .gz means gzip.

The reader numbers the lines and raises DataError for every file that it cannot read. The writer
writes whole files: it renames a temporary file, so that nobody reads half of one. The formats parse
the lines.
"""

import codecs
import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from models.errors import DataError
from service.atomic import write_atomic

COMPRESSION_LEVEL = 6  # gzip's own default; level 9 costs twice the time for about 1 % of the size


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line without its ending).

    CRLF endings and a last line without an ending are legal, and so is a byte order mark, which is
    left out. The format checks for UTF-8. Blank lines at the end are left out too. Raises DataError
    for a file that cannot be read, and for any other blank line.
    """
    number, blank = 0, 0
    try:
        with open_bytes(path) as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if not line.strip():
                    blank = blank or number
                    continue
                if blank:
                    raise DataError(path, blank, "a line of data", "a blank line")
                yield number, line.rstrip(b"\r\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise DataError(path, number + 1, "a whole gzip file", f"damage ({exc})") from exc
    except OSError as exc:
        raise DataError(path, None, "a readable file", exc.strerror or str(exc)) from exc


def open_bytes(path: Path) -> BinaryIO | gzip.GzipFile:
    """Open a file for its bytes, unpacked where the name ends in .gz. Raises OSError."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def quote(line: bytes) -> str:
    """A line for an error message, with escapes for bytes that are not UTF-8."""
    return repr(line.decode("utf-8", errors="backslashreplace"))


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write the lines, each with a newline, into a whole file. Equal lines give equal bytes."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            if path.suffix == ".gz":
                # Without a name and a time in the header the bytes depend only on the content.
                with gzip.GzipFile("", "wb", COMPRESSION_LEVEL, file, mtime=0) as packed:
                    packed.writelines(line + b"\n" for line in lines)
            else:
                file.writelines(line + b"\n" for line in lines)

    write_atomic(path, write)


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 (hex) over the names and bytes of the files; their order does not matter."""
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        with path.open("rb") as file:
            inner = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.name}\0{inner}\n".encode())
    return total.hexdigest()
