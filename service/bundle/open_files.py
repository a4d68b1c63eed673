"""OpenFiles: says whether the files of an open bundle are still what was verified.

The service maps most files and reads them when an answer needs them. Whoever writes into such a
file changes answers, and whoever cuts one kills the process (SIGBUS). A file that was replaced by
renaming, or deleted, does no harm once it is open: the map holds the old one. Until then every
change counts, since other bytes may be opened than were hashed.

While it lives it holds a shared lock on the manifest, so that no cache removes the bundle.
"""

import contextlib
import fcntl
import os
import weakref
from collections.abc import Mapping
from pathlib import Path

from service.bundle.manifest import MANIFEST, FileEntry
from service.bundle.verify import hash_file
from service.errors import BundleError, FileCorrupt

Stamp = tuple[int, int, int, int]
"""A file's inode and size, and the times (ns) when its content and its status last changed. The
last one is the kernel's own: unlike the others it cannot be set back (inode(7), `st_ctim`)."""


def stamps(folder: Path) -> dict[str, Stamp]:
    """The stamp of each file of a bundle; take them before the bundle is verified."""
    try:
        names = os.listdir(folder)
    except OSError:  # the verification says what is wrong
        return {}
    return {name: stamp for name in names if (stamp := _stamp(folder / name)) is not None}


class OpenFiles:
    """The files of one open bundle. For one thread at a time."""

    def __init__(
        self, folder: Path, files: Mapping[str, FileEntry], verified: Mapping[str, Stamp]
    ) -> None:
        """`verified` has the stamps from before the files were hashed.

        Make it after all are open. Raises FileCorrupt where one was changed or replaced meanwhile.
        """
        self._folder = folder
        _hold_lock(self, folder)
        self._files = files
        self._good = {name: verified[name] for name in files if name in verified}
        for name in files:
            if _stamp(folder / name) != self._good.get(name):
                raise FileCorrupt(
                    f"{folder / name} was changed while the bundle was opened: let nothing write "
                    "there, and open it again"
                )

    def fault(self) -> str | None:
        """None while no file was changed in place, else a sentence that names the first one.

        It reads only the status of each file. One whose time has changed is hashed again, once.
        """
        for name, good in self._good.items():
            seen = _stamp(self._folder / name)
            if seen is None or seen[0] != good[0]:
                continue  # deleted, or replaced by renaming
            if seen == good:
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


def _hold_lock(owner: object, folder: Path) -> None:
    """Lock the manifest until the owner is gone, in this process and in those forked from it."""
    with contextlib.suppress(OSError):  # a disk without locks holds no cache either
        descriptor = os.open(folder / MANIFEST, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(owner, os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _stamp(path: Path) -> Stamp | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns
