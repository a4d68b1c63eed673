"""Opens the files of a bundle: plain files only, no links, and never more bytes than allowed.

A bundle folder may come from anywhere. A link could lead out of it, a named pipe could block the
process for ever, and a file that grows while it is read might never end. All three are refused.
"""

import os
from pathlib import Path
from typing import BinaryIO

from service.errors import FileCorrupt, FileMissing
from service.regular_files import NotRegular, open_regular, read_at_most


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


def _not_plain(path: Path) -> FileCorrupt:
    return FileCorrupt(f"{path} is not a plain file (links and folders are refused)")
