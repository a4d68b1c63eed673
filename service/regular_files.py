"""Reads files that somebody names: regular ones only, and never more bytes than allowed.

A named pipe could block the process for ever, and a device such as /dev/zero never ends. A program
that reads either one at its start neither starts nor fails. Both are refused before they are read.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO


class NotRegular(ValueError):
    """The path names a pipe, a device, a socket or a folder."""


def open_regular(path: Path, flags: int = 0) -> BinaryIO:
    """Open a file for reading, unbuffered; `flags` go to `os.open` beside the usual ones.

    Raises OSError where it cannot be opened, and NotRegular.
    """
    # O_NONBLOCK: opening a named pipe would otherwise wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegular(f"{path} is not a regular file: pipes, devices and folders are refused")
    return open(descriptor, "rb", buffering=0)


def read_at_most(file: BinaryIO, max_bytes: int) -> bytes | None:
    """The whole content of a file; None where it has over `max_bytes`.

    It tries to read one byte too many and does not trust the size that the system reports.
    """
    parts, budget = [], max_bytes + 1
    while budget and (part := file.read(budget)):
        parts.append(part)
        budget -= len(part)
    return b"".join(parts) if budget else None


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Read a whole regular file; links are followed, as Kubernetes mounts files as links.

    Raises OSError where it cannot be read, and ValueError where it is not regular or too long. The
    sentence of a ValueError names the file.
    """
    with open_regular(path) as file:
        content = read_at_most(file, max_bytes)
    if content is None:
        raise ValueError(f"{path} has over {max_bytes} bytes: name the right file, or shorten it")
    return content


def read_text(path: Path, max_bytes: int) -> str:
    """Read a text in UTF-8, without the byte order mark that some editors put at its start.

    Raises what `read_bytes` raises, and ValueError where it is not UTF-8.
    """
    try:
        return read_bytes(path, max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ValueError(f"{path} is not UTF-8: {exc.reason} at byte {exc.start}") from exc
