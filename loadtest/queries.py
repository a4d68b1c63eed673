"""Reads the query texts of a test: plain lines, or JSON lines with `title`; either may be gzipped.

A first line that starts with `{` means JSON lines. Without a file, a test sends the 50 titles of
queries.txt. Every error names the file and the line.
"""

import gzip
import json
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import BinaryIO, cast

from loadtest.errors import UsageError

# The client holds a request for every text, so a huge file would fill its memory. A choice:
# 100,000 requests of some 300 bytes are 30 MB.
MAX_TEXTS = 100_000
# Choices: a line of JSON may hold a whole document beside its title. Both bound what a wrong path,
# or a small .gz of a huge text, can take.
MAX_LINE_BYTES = 1 << 20
MAX_FILE_BYTES = 1 << 30


def load_queries(path: str | None) -> list[str]:
    """Return at least one query text and at most MAX_TEXTS.

    Raises UsageError where the file cannot be read, has a bad line or has no query.
    """
    if path is None:
        packaged = resources.files("loadtest").joinpath("queries.txt")
        return packaged.read_text(encoding="utf-8").split("\n")[:-1]
    texts = list(_texts(path))
    if not texts:
        raise UsageError(f"{path} has no queries: every line is blank. Put one query a line.")
    return texts


def _texts(path: str) -> Iterator[str]:
    json_lines: bool | None = None
    n_texts = 0
    for number, raw in _lines(path):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as exc:
            raise UsageError(f"{path} line {number} is not UTF-8 text ({exc.reason}).") from exc
        if not line:
            continue
        if json_lines is None:
            json_lines = line.startswith("{")
        yield _title(line, path, number) if json_lines else line
        n_texts += 1
        if n_texts == MAX_TEXTS:
            return


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    number = n_bytes = 0
    try:
        with _open(path) as handle:
            while raw := handle.readline(MAX_LINE_BYTES + 1):
                number += 1
                n_bytes += len(raw)
                if len(raw) > MAX_LINE_BYTES:
                    raise UsageError(f"{path} line {number} has over {MAX_LINE_BYTES:,} bytes.")
                if n_bytes > MAX_FILE_BYTES:
                    raise UsageError(f"{path} has over {MAX_FILE_BYTES:,} bytes; cut it.")
                yield number, raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as exc:
        raise UsageError(f"{path} is not a whole gzip file after line {number} ({exc}).") from exc
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror or exc}.") from exc


@contextmanager
def _open(path: str) -> Iterator[BinaryIO]:
    """Open a regular file only: a pipe would wait for a writer, a device never ends."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"{path} is not a regular file: pipes, devices and folders are refused.")
    with open(descriptor, "rb") as file:
        yield cast(BinaryIO, gzip.GzipFile(fileobj=file)) if path.endswith(".gz") else file


def _title(line: str, path: str, number: int) -> str:
    try:
        row = json.loads(line)
    except ValueError as exc:
        raise UsageError(f"{path} line {number} is not JSON ({exc}).") from exc
    title = row.get("title") if isinstance(row, dict) else None
    if not isinstance(title, str) or not title.strip():
        raise UsageError(
            f"{path} line {number} needs a JSON object with a non-empty text under 'title'."
        )
    return title.strip()
