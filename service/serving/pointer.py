"""Pointer: which bundle a path names, directly or by its file CURRENT, and when that changes."""

from collections.abc import Callable
from pathlib import Path

from service.bundle.manifest import POINTER
from service.bundle.verify import read_manifest, resolve
from service.errors import BundleNotFound

Target = tuple[Path | None, str]
"""A bundle's folder and its id. The folder is None for an engine that came from no folder."""


class Pointer:
    """A path, and the bundle that was last followed to it. `followed` is for its user to set."""

    def __init__(
        self, path: Path, followed: Target, refresh: Callable[[], None] = lambda: None
    ) -> None:
        """`refresh` brings the path up to date where it mirrors a URL; it must not block."""
        self._path = path
        self._refresh = refresh
        self.followed = followed
        self._was_missing = False

    def moved_to(self) -> tuple[Path, str] | None:
        """What the path names now; None where that was followed already. Reads two small files.

        Raises BundleError. A path that names no bundle is a fault only at the second look: at the
        first, a training job may just be moving the pointer.
        """
        self._refresh()
        try:
            folder = resolve(self._path).resolve()
            target = folder, read_manifest(folder).bundle_id
        except BundleNotFound:
            if self._was_missing:
                raise
            self._was_missing = True
            return None
        self._was_missing = False
        return None if target == self.followed else target

    def stamp(self) -> tuple[int, int] | None:
        """Change time (ns) and inode of the file CURRENT; None without one."""
        try:
            info = (self._path / POINTER).stat()
        except OSError:
            return None
        return info.st_mtime_ns, info.st_ino


def still_lies_at(folder: Path, bundle_id: str) -> bool:
    """Whether a folder holds this bundle, or has lost its manifest since the bundle was opened.

    It may hold another bundle by now, and what lies there counts. Raises BundleError.
    """
    try:
        return read_manifest(folder).bundle_id == bundle_id
    except BundleNotFound:
        return True
