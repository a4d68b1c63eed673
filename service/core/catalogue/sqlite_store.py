"""SqliteStore: the changes of one catalogue in an append-only SQLite file that processes share.

A store whose file was replaced, removed or cut refuses to write (`StoreFiles`); it can be read on.
`service.core.catalogue.store` says what a store does.
"""

import contextlib
import os
import platform
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from service.atomic import remove_left_over, staging_folder, sync
from service.core.catalogue.changes import Change, LabelOf, StoredChange, resolve
from service.core.catalogue.fork_guard import guard
from service.core.catalogue.store import RESTORE, Vectors, as_row, from_row
from service.core.catalogue.store_files import StoreFiles
from service.core.labels.labels import Label
from service.errors import CatalogueCorrupt, CatalogueUnavailable

APPLICATION_ID: Final = 0x41535452
"""Written into the file's header ("ASTR"), to recognise files of other programs."""
VERSION: Final = 1
BUSY_SECONDS: Final = 10.0
"""How long to wait for another process's write lock. A choice: a write takes milliseconds, so a
longer wait means that something is wrong."""
STAGING: Final = f".new-{platform.node()}-"
"""How folders begin in which new files are filled. The machine's name is in it, because process ids
of another one (a container) say nothing here."""
_TABLES: Final = (
    "CREATE TABLE catalogue (name TEXT NOT NULL)",
    "CREATE TABLE changes (seq INTEGER PRIMARY KEY, label_id TEXT NOT NULL,"
    " op TEXT NOT NULL, text TEXT, metadata BLOB)",
    "CREATE INDEX changes_of_label ON changes (label_id, seq)",
    "CREATE TABLE vectors (encoder TEXT NOT NULL, seq INTEGER NOT NULL,"
    " vector BLOB NOT NULL, PRIMARY KEY (encoder, seq)) WITHOUT ROWID",
    "CREATE TABLE folds (bundle_id TEXT PRIMARY KEY, seq INTEGER NOT NULL)",
)


def store_path(state_dir: Path, name: str) -> Path:
    """The path of a catalogue's file of changes."""
    return state_dir / f"{quote(name, safe='')}.sqlite"


class SqliteStore:
    """An open file of changes. Threads may share it, and so may forked processes.

    A SQLite connection must not cross a fork (sqlite.org/howtocorrupt.html). A fork therefore
    closes it first, and each process opens a new one when it needs it.
    """

    def __init__(self, path: Path, name: str) -> None:
        """Open or create the file of the catalogue `name`."""
        self.path = path
        self.name = name
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._closed = False
        self._writable = True
        self._files = StoreFiles(path)
        with self._translate_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                remove_left_over(path.parent, STAGING)
            else:
                _create(path, name)
            self._db = self._connect(self._check)
        self._version: int | None = self._data_version()
        guard(self)

    @property
    def place(self) -> str:
        """The file's path."""
        return str(self.path)

    def append(
        self,
        changes: Sequence[Change],
        base: LabelOf,
        after: int,
        encoder: str = "",
        vectors: Vectors | None = None,
    ) -> list[StoredChange]:
        """As ChangeStore.append."""
        with self._transaction() as db:
            labels = resolve(changes, lambda name: _live(db, name, base, after))
            first = 1 + _last_seq(db)
            stored = [
                StoredChange(first + place, change.op, change.label_id, label)
                for place, (change, label) in enumerate(zip(changes, labels, strict=True))
            ]
            db.executemany("INSERT INTO changes VALUES (?, ?, ?, ?, ?)", map(as_row, stored))
            if vectors:
                _save(db, encoder, {first + place: row for place, row in vectors.items()})
        return stored

    def resolve(self, changes: Sequence[Change], base: LabelOf, after: int) -> list[Label | None]:
        """As ChangeStore.resolve."""
        with self._reading() as db:
            return resolve(changes, lambda name: _live(db, name, base, after))

    def since(self, seq: int) -> list[StoredChange]:
        """All changes after `seq`, in order."""
        with self._reading() as db:
            rows = db.execute("SELECT * FROM changes WHERE seq > ? ORDER BY seq", (seq,)).fetchall()
        return [from_row(row) for row in rows]

    def vectors(self, encoder: str, after: int) -> dict[int, NDArray[np.float32]]:
        """The stored embeddings (dim,) by `encoder` of changes after `after`, by seq."""
        query = "SELECT seq, vector FROM vectors WHERE encoder = ? AND seq > ?"
        with self._reading() as db:
            rows = db.execute(query, (encoder, after)).fetchall()
        return {seq: np.frombuffer(raw, np.float32) for seq, raw in rows}

    def save_vectors(self, encoder: str, vectors: Vectors) -> None:
        """Store embeddings by seq for the next start."""
        with self._transaction() as db:
            _save(db, encoder, vectors)

    def changed(self) -> bool:
        """As ChangeStore.changed; takes a few microseconds."""
        version = self._data_version()
        last_version, self._version = self._version, version
        return version != last_version

    def history(self) -> tuple[str, int]:
        """As ChangeStore.history. A file has one history: StoreFiles sees to that."""
        with self._reading() as db:
            return "", _last_seq(db)

    def mark_folded(self, bundle_id: str, seq: int) -> None:
        """As ChangeStore.mark_folded."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO folds VALUES (?, ?)", (bundle_id, seq))
            db.execute("DELETE FROM vectors WHERE seq <= ?", (seq,))

    def folds(self) -> dict[str, int]:
        """The bundle id of every fold, and the last change in it."""
        with self._reading() as db:
            return dict(db.execute("SELECT bundle_id, seq FROM folds").fetchall())

    def close(self) -> None:
        """Close the file for good; every later call raises CatalogueUnavailable."""
        with self._lock:
            self._closed = True
            self._release()

    def hold_for_fork(self) -> None:
        """Wait for the lock, close the file, and keep the lock over the fork."""
        self._lock.acquire()
        self._release()

    def go_on_after_fork(self) -> None:
        """Release the lock after the fork, in the parent and in the child."""
        self._lock.release()

    def _release(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db = self._version = None  # another connection counts versions anew

    def _connect(self, prepare: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
        db = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            prepare(db)
            db.execute("PRAGMA synchronous = FULL")
            self._files.opened()
            # Where the file can only be read, SQLite opens it so without a word, and for good.
            self._writable = os.access(self.path, os.W_OK)
        except BaseException:  # a signal too must leave no connection open
            db.close()
            raise
        return db

    def _check(self, db: sqlite3.Connection) -> None:
        if self.path.stat().st_size == 0:
            raise CatalogueCorrupt(
                f"{self.path} has no bytes, so changes may be lost: {RESTORE}, or remove it, its "
                "-wal and its -shm to begin without changes"
            )
        if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise CatalogueCorrupt(
                f"{self.path} is a database of another program: name another folder for changes"
            )
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version != VERSION:
            raise CatalogueCorrupt(
                f"{self.path} is of version {version}, this code reads {VERSION}: open it with the "
                "Astrolabe that wrote it"
            )
        self._check_name(db)
        damage = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise CatalogueCorrupt(f"{self.path} is damaged ({damage}): {RESTORE}")

    def _check_name(self, db: sqlite3.Connection) -> None:
        name = db.execute("SELECT name FROM catalogue").fetchone()[0]
        if name != self.name:
            raise CatalogueCorrupt(
                f"{self.path} holds the changes of catalogue {name!r}, the bundle is of "
                f"{self.name!r}: name another folder for changes"
            )

    def _data_version(self) -> int:
        with self._reading() as db:
            return int(db.execute("PRAGMA data_version").fetchone()[0])

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._translate_errors(), self._lock:
            if self._closed:
                raise sqlite3.ProgrammingError("it has been closed")
            if self._db is None:
                self._db = self._connect(self._check_name)
            yield self._db

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as db:
            if not self._writable:  # it was so when this connection was opened
                self._release()
                db = self._db = self._connect(self._check_name)
            before = db.total_changes
            with _all_or_nothing(db):
                self._files.check(db)
                yield db
            if db.total_changes > before:  # else the log of a new file may still be empty
                self._files.check_written()

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Raise CatalogueUnavailable or CatalogueCorrupt in place of errors of SQLite and OS."""
        try:
            yield
        except (sqlite3.OperationalError, sqlite3.ProgrammingError, OSError) as exc:
            raise CatalogueUnavailable(
                f"{self.path} cannot be used: {exc}: look at the disk, its free space and rights, "
                "and at other processes that hold the file"
            ) from exc
        except sqlite3.DatabaseError as exc:
            raise CatalogueCorrupt(f"{self.path}: {exc}: {RESTORE}") from exc


def _create(path: Path, name: str) -> None:
    """Put a whole file without changes at `path`, unless another process is first.

    No other process sees the file before it is whole. A link, unlike a rename, replaces nothing.
    What a kill leaves of it, the next start removes.
    """
    with staging_folder(path.parent, STAGING) as folder:
        whole = folder / path.name
        with contextlib.closing(sqlite3.connect(whole, isolation_level=None)) as db:
            with _all_or_nothing(db):
                for table in _TABLES:
                    db.execute(table)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {VERSION}")
                db.execute("INSERT INTO catalogue VALUES (?)", (name,))
            db.execute("PRAGMA journal_mode = WAL")
        sync(whole)
        with contextlib.suppress(FileExistsError):
            os.link(whole, path)
    sync(path.parent)


def _live(db: sqlite3.Connection, name: str, base: LabelOf, after: int) -> Label | None:
    """The live label of an id, or None: by its newest change after `after`, else `base`'s."""
    latest = "SELECT * FROM changes WHERE label_id = ? AND seq > ? ORDER BY seq DESC LIMIT 1"
    try:
        row = db.execute(latest, (name, after)).fetchone()
    except UnicodeEncodeError:  # a lone surrogate: no label can have it
        return None
    return from_row(row).label if row else base(name)


@contextlib.contextmanager
def _all_or_nothing(db: sqlite3.Connection) -> Iterator[None]:
    """A write transaction, rolled back if its body raises."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:  # a signal too must leave no transaction open
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _last_seq(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT COALESCE(MAX(seq), 0) FROM changes").fetchone()[0])


def _save(db: sqlite3.Connection, encoder: str, vectors: Vectors) -> None:
    rows = ((encoder, seq, row.astype(np.float32).tobytes()) for seq, row in vectors.items())
    db.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)", rows)
