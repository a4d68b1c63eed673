"""BundleCache: a folder of verified bundles by their id, and of what URLs name.

    <cache>/<bundle id>/            a bundle, as its manifest says
    <cache>/.fetch-<bundle id>/     one that is still being fetched
    <cache>/urls/<hash>/            the mirror of a URL: a folder of bundles with a pointer

One process at a time fills it. What is open somewhere is never removed: `OpenFiles` holds a lock on
each open bundle.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from service.atomic import write_text
from service.bundle.manifest import MANIFEST, POINTER
from service.errors import BundleUnavailable

FETCHING: Final = ".fetch-"
_BUNDLE_ID = re.compile("[0-9a-f]{64}")


class BundleCache:
    """A cache on this machine's disk, of at most `max_bytes` (0: no bound of its own)."""

    def __init__(self, folder: Path, max_bytes: int = 0) -> None:
        self.folder = folder
        self._max_bytes = max_bytes

    def bundle(self, bundle_id: str) -> Path:
        """The folder of a bundle, which need not be there."""
        return self.folder / bundle_id

    def mirror(self, url: str) -> Path:
        """The folder of bundles that stands for a URL; it is the same for the same text."""
        return self.folder / "urls" / hashlib.sha256(url.encode()).hexdigest()[:16]

    def holds(self, bundle_id: str) -> bool:
        """Whether the bundle is there; it then counts as used now."""
        folder = self.bundle(bundle_id)
        if not (folder / MANIFEST).is_file():
            return False
        with contextlib.suppress(OSError):  # a cache that is mounted read-only evicts nothing
            os.utime(folder)
        return True

    def point(self, url: str, bundle_id: str) -> None:
        """Let the mirror of a URL name this bundle."""
        mirror = self.mirror(url)
        mirror.mkdir(parents=True, exist_ok=True)
        link = mirror / bundle_id
        if not link.is_symlink():
            link.symlink_to(Path("..", "..", bundle_id), target_is_directory=True)
        pointer = mirror / POINTER
        if not pointer.exists() or pointer.read_text("utf-8").strip() != bundle_id:
            write_text(pointer, f"{bundle_id}\n")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Within this block no other process fills or empties the cache. May wait for one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def make_room(self, n_bytes: int, url: str) -> None:
        """Remove the bundles used longest ago until so many bytes fit. Within `locked`.

        Raises BundleUnavailable where they cannot fit; nothing that could stay is removed then.
        """
        sizes = {folder: _size(folder) for folder in self._bundles()}
        free = shutil.disk_usage(self.folder).free
        excess = n_bytes - free
        if self._max_bytes:
            excess = max(excess, sum(sizes.values()) + n_bytes - self._max_bytes)
        if excess <= 0:
            return
        removable = [folder for folder in sizes if not self._is_needed(folder)]
        if sum(sizes[folder] for folder in removable) < excess:
            kept = sum(sizes.values()) - sum(sizes[folder] for folder in removable)
            bound = f"bundle_cache_bytes ({self._max_bytes})" if self._max_bytes else "its disk"
            raise BundleUnavailable(
                f"{url} has {n_bytes} bytes, which do not fit into {self.folder} beside {kept} "
                f"bytes of bundles in use, with {free} bytes free: raise {bound}"
            )
        for folder in removable:
            if excess <= 0:
                break
            shutil.rmtree(folder)
            excess -= sizes[folder]

    def drop_unfinished(self, but: str) -> None:
        """Remove what other fetches have left unfinished. Within `locked`."""
        for folder in self.folder.glob(f"{FETCHING}*"):
            if folder.name != FETCHING + but:
                shutil.rmtree(folder, ignore_errors=True)

    def _bundles(self) -> list[Path]:
        """The cached bundles, the one used longest ago first."""
        names = [path for path in self.folder.iterdir() if _BUNDLE_ID.fullmatch(path.name)]
        return sorted(names, key=lambda path: path.stat().st_mtime_ns)

    def _is_needed(self, folder: Path) -> bool:
        """Whether a mirror's pointer names the bundle, or some process has it open."""
        for pointer in self.folder.glob(f"urls/*/{POINTER}"):
            if pointer.read_text("utf-8").strip() == folder.name:
                return True
        with (folder / MANIFEST).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
        return False


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
