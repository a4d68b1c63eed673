"""Opens the files of a bundle: plain ones only, never followed, never read past what is allowed.

A bundle folder may come from anywhere. A link could lead out of it, a named pipe would hold the
process for ever, and a file that grows while it is read would never end; all three are refused.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from service.errors import FileCorrupt, FileMissing


def open_plain(path: Path) -> BinaryIO:
    """Open for reading; raises FileMissing, or FileCorrupt where it is no plain, readable file."""
    # O_NONBLOCK: opening a named pipe would otherwise wait for a writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        raise FileMissing(f"{path} is not there") from None
    except OSError as exc:
        if path.is_symlink():
            raise _not_plain(path) from exc
        raise FileCorrupt(f"{path} cannot be read: {exc.strerror}") from exc
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_plain(path)
    return open(descriptor, "rb", buffering=0)


def read_plain(path: Path, max_bytes: int) -> bytes:
    """The whole of a plain file; raises FileMissing, or FileCorrupt where it is longer than that.

    One byte more than allowed is asked for, so it does not matter what the file's size says.
    """
    with open_plain(path) as file:
        parts, left = [], max_bytes + 1
        while left and (part := file.read(left)):
            parts.append(part)
            left -= len(part)
    if not left:
        raise FileCorrupt(f"{path} has over {max_bytes} bytes")
    return b"".join(parts)


def _not_plain(path: Path) -> FileCorrupt:
    return FileCorrupt(f"{path} is not a plain file (links and folders are refused)")
