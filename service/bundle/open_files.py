"""OpenFiles: says whether the files of an open bundle are still what was opened.

The service maps most files and reads them when an answer needs them. Whoever writes into such a
file changes answers, and whoever cuts one kills the process (SIGBUS). A file that was replaced by
renaming, or deleted, does no harm: the map holds the old one.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from service.bundle.manifest import FileEntry
from service.bundle.verify import hash_file
from service.errors import BundleError

_Stamp = tuple[int, int]
"""A file's size and the time (ns) of its last change."""


class OpenFiles:
    """The files of one open bundle. For one thread at a time."""

    def __init__(self, folder: Path, files: Mapping[str, FileEntry]) -> None:
        """Note the files as they lie there now; call it just before they are opened."""
        self._folder = folder
        self._files = files
        infos = {name: _stat(folder / name) for name in files}
        self._inodes = {name: info.st_ino for name, info in infos.items() if info is not None}
        self._good: dict[str, _Stamp] = {
            name: (files[name].bytes, info.st_mtime_ns)
            for name, info in infos.items()
            if info is not None
        }

    def fault(self) -> str | None:
        """None while no file was changed in place, else a sentence that names the first one.

        It reads only the status of each file. One whose time has changed is hashed again, once.
        """
        for name, inode in self._inodes.items():
            info = _stat(self._folder / name)
            if info is None or info.st_ino != inode:
                continue  # deleted, or replaced by renaming
            seen = (info.st_size, info.st_mtime_ns)
            if seen == self._good[name]:
                continue
            if not self._is_whole(name):
                return f"{name} of the bundle was changed on disk: put the bundle back"
            self._good[name] = seen
        return None

    def _is_whole(self, name: str) -> bool:
        try:
            entry = self._files[name]
            return hash_file(self._folder / name, entry.bytes) == entry
        except BundleError:
            return False


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
