"""Numbered lines in, whole files out: the file access under every format.

Reads plain or gzipped (by the suffix .gz) text line by line and turns each way a file can fail to
be read into a DataError. Writes through a temporary sibling, so a reader never meets half a file.
What a line means is not known here.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from models.errors import DataError
from service.atomic import write_atomic

COMPRESSION_LEVEL = 6  # gzip's own default; level 9 costs twice the time for about 1 % of the size


def read_lines(path: Path, *, blank_rows: bool = False) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its ending); a blank line is an error unless it is a row.

    CRLF endings and a last line without an ending are legal. UTF-8 is the format's to check.
    """
    number = 0
    try:
        with open_bytes(path) as file:
            for number, line in enumerate(file, start=1):
                if not blank_rows and not line.strip():
                    raise DataError(path, number, "a line of data", "a blank line")
                yield number, line.rstrip(b"\r\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise DataError(path, number + 1, "a whole gzip file", f"damage ({exc})") from exc
    except OSError as exc:
        raise DataError(path, None, "a readable file", exc.strerror or str(exc)) from exc


def open_bytes(path: Path) -> BinaryIO | gzip.GzipFile:
    """The file's bytes, unpacked where the name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def quote(line: bytes) -> str:
    """A line as an error message shows it; bytes that are not UTF-8 stay visible as escapes."""
    return repr(line.decode("utf-8", errors="backslashreplace"))


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Writes the lines, each ended by a newline, all or nothing; the same lines, the same bytes."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            if path.suffix == ".gz":
                # No name and no time in the header: the bytes depend on the content alone.
                with gzip.GzipFile("", "wb", COMPRESSION_LEVEL, file, mtime=0) as packed:
                    packed.writelines(line + b"\n" for line in lines)
            else:
                file.writelines(line + b"\n" for line in lines)

    write_atomic(path, write)


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and bytes of these files, whatever their order."""
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        with path.open("rb") as file:
            inner = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.name}\0{inner}\n".encode())
    return total.hexdigest()
