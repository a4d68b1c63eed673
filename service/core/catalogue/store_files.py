"""Tells whether an open SQLite file still is what lies at its path, as after a restart.

A file that is replaced, removed or cut while it is open goes on taking writes, and all of them are
gone after a restart. So a store compares before it acknowledges: the file, its write-ahead log
(`-wal`) and that log's index (`-shm`), which SQLite opens by name. Nothing here opens the file
itself, except through SQLite: a process that closes any handle on it drops SQLite's locks
(sqlite.org/howtocorrupt.html, 2.2).
"""

import os
import sqlite3
from pathlib import Path
from typing import Final

from service.errors import CatalogueUnavailable

_WAL_MAGIC: Final = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
"""The first bytes of a write-ahead log (sqlite.org/fileformat2.html, 4.1)."""


class StoreFiles:
    """The files behind a store's connection. One thread at a time may use it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wal = Path(f"{path}-wal")
        self._marks: dict[Path, tuple[int, int]] = {}
        self._look = (0, 0)

    def opened(self) -> None:
        """Remember the files of a connection that has just read.

        Raises CatalogueUnavailable if an earlier connection had another file, and OSError.
        """
        paths = (self._path, self._wal, Path(f"{self._path}-shm"))
        marks = {path: _mark(path) for path in paths}
        if self._marks.get(self._path, marks[self._path]) != marks[self._path]:
            raise self._parted("another file lies in its place")
        self._marks = marks
        self._look = _look(self._path)

    def check(self, db: sqlite3.Connection) -> None:
        """Before a write: raises CatalogueUnavailable if the files are not those that were opened.

        SQLite writes into the file itself only when it moves the log there. If the file's time has
        changed, a second connection reads what a restart would read.
        """
        self._check_places()
        look = _look(self._path)
        if look != self._look:
            if look[0] < self._look[0]:
                raise self._parted(f"it was cut to {look[0]} bytes")
            self._compare(db)
            self._look = look

    def check_written(self) -> None:
        """After a commit, before it is acknowledged: raises CatalogueUnavailable as `check`."""
        self._check_places()
        with self._wal.open("rb") as file:
            if file.read(4) not in _WAL_MAGIC:
                raise self._parted(f"{self._wal.name} was cut")
        self._look = _look(self._path)

    def _check_places(self) -> None:
        for path, mark in self._marks.items():
            try:
                same = _mark(path) == mark
            except (FileNotFoundError, NotADirectoryError):
                raise self._parted(f"{path.name} is gone") from None
            if not same:
                raise self._parted(f"another {path.name} lies in its place")

    def _compare(self, db: sqlite3.Connection) -> None:
        newest = "SELECT (SELECT name FROM catalogue), (SELECT MAX(seq) FROM changes)"
        fresh = sqlite3.connect(self._path, isolation_level=None)
        try:
            damage = fresh.execute("PRAGMA quick_check(1)").fetchone()[0]
            same = fresh.execute(newest).fetchone() == db.execute(newest).fetchone()
        except sqlite3.DatabaseError as exc:
            raise self._parted(f"its content was overwritten: {exc}") from exc
        finally:
            fresh.close()
        if damage != "ok" or not same:
            raise self._parted("its content was overwritten")

    def _parted(self, what: str) -> CatalogueUnavailable:
        return CatalogueUnavailable(
            f"{self._path} is no longer the file that is open ({what}), so a change would be lost: "
            "none is made until the service is started again; docs/catalogue.md says how to "
            "restore a backup"
        )


def _mark(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _look(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
