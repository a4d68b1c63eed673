"""PostgresStore: the changes of catalogues in a PostgreSQL database that many machines share.

Every write locks the catalogue's row first and counts up in it. So changes are numbered in the
order in which they are committed, without gaps: a reader that asks for what came after the last
one misses nothing. A sequence would not do, because a transaction can commit after one that took a
later number (docs/decisions/0041). Readers poll that one row; nobody listens for notifications.
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from service.core.catalogue.changes import Change, LabelOf, StoredChange, resolve
from service.core.catalogue.fork_guard import guard
from service.core.catalogue.store import RESTORE, Vectors, as_row, from_row
from service.core.labels.labels import Label
from service.errors import CatalogueCorrupt, CatalogueUnavailable, SettingsInvalid

if TYPE_CHECKING:
    from psycopg import Connection

VERSION: Final = 1
WAIT_S: Final = 10.0
"""How long a write waits for another one's lock; a statement may take twice as long. As for SQLite:
a write takes milliseconds, so a longer wait means that something is wrong."""
CONNECT_S: Final = 3
"""How long to wait for a connection. A choice: those that read on meanwhile should hear of a fault
before their callers' deadlines pass."""

# Texts are bytes, because a text of PostgreSQL cannot hold U+0000, which a label's text may have;
# metadata too, because jsonb re-orders it. Ids sort by their bytes whatever the locale.
_TABLES: Final = (
    "CREATE SCHEMA IF NOT EXISTS astrolabe",
    "CREATE TABLE IF NOT EXISTS astrolabe.catalogues (name text PRIMARY KEY, last_seq bigint NOT"
    " NULL, history uuid NOT NULL DEFAULT gen_random_uuid(), format int NOT NULL)",
    "CREATE TABLE IF NOT EXISTS astrolabe.changes (name text NOT NULL, seq bigint NOT NULL,"
    ' label_id text COLLATE "C" NOT NULL, op text NOT NULL, text bytea, metadata bytea,'
    " PRIMARY KEY (name, seq))",
    "CREATE INDEX IF NOT EXISTS changes_of_label ON astrolabe.changes (name, label_id, seq DESC)",
    "CREATE TABLE IF NOT EXISTS astrolabe.vectors (name text NOT NULL, encoder text NOT NULL, seq"
    " bigint NOT NULL, vector bytea NOT NULL, PRIMARY KEY (name, encoder, seq))",
    "CREATE TABLE IF NOT EXISTS astrolabe.folds (name text NOT NULL, bundle_id text NOT NULL, seq"
    " bigint NOT NULL, PRIMARY KEY (name, bundle_id))",
)
_COLUMNS: Final = "seq, label_id, op, text, metadata"
_TABLES_LOCK: Final = 0x41535452
"""Of an advisory lock ("ASTR"): `IF NOT EXISTS` alone fails where two processes begin at once."""


class PostgresStore:
    """One catalogue in a database. Threads may share it, and so may forked processes.

    It holds one connection. A fork must not share it, so each process opens its own when it needs
    it. A connection that was lost is opened anew by the next call.
    """

    def __init__(self, url: str, name: str) -> None:
        """Connect, and make the tables and the catalogue `name` where they are missing.

        `url` is a connection string of libpq. Raises SettingsInvalid where psycopg is not
        installed or the URL is none, and CatalogueError.
        """
        self._url = url
        self._name = name
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._db: Connection[Any] | None = None
        self._closed = False
        self._psycopg = _psycopg(url)
        try:
            with self._connection() as db:
                self._prepare(db)
            self._seen = self.history()
        except BaseException:  # a signal too must leave no connection open
            self.close()
            raise
        guard(self)

    @property
    def place(self) -> str:
        """The server and database, without user and password."""
        parts = self._psycopg.conninfo.conninfo_to_dict(self._url)
        server = f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}"
        return f"PostgreSQL at {server}/{parts.get('dbname', '')}"

    def append(
        self,
        changes: Sequence[Change],
        base: LabelOf,
        after: int,
        encoder: str = "",
        vectors: Vectors | None = None,
    ) -> list[StoredChange]:
        """As ChangeStore.append."""
        if not changes:
            return []
        with self._connection() as db, db.transaction():
            first = self._count_up(db, len(changes))
            labels = resolve(changes, self._finder(db, changes, base, after))
            stored = [
                StoredChange(first + place, change.op, change.label_id, label)
                for place, (change, label) in enumerate(zip(changes, labels, strict=True))
            ]
            with db.cursor() as cursor:
                cursor.executemany(
                    f"INSERT INTO astrolabe.changes (name, {_COLUMNS})"
                    " VALUES (%s, %s, %s, %s, %s, %s)",
                    [(self._name, *_as_bytes(as_row(change))) for change in stored],
                )
            if vectors:
                self._save(db, encoder, {first + place: row for place, row in vectors.items()})
        history, seen = self._seen
        if seen == first - 1:  # else another process has written, which `changed` is to tell
            self._seen = history, stored[-1].seq
        return stored

    def resolve(self, changes: Sequence[Change], base: LabelOf, after: int) -> list[Label | None]:
        """As ChangeStore.resolve."""
        with self._connection() as db:
            return resolve(changes, self._finder(db, changes, base, after))

    def since(self, seq: int) -> list[StoredChange]:
        """As ChangeStore.since."""
        query = (
            f"SELECT {_COLUMNS} FROM astrolabe.changes WHERE name = %s AND seq > %s ORDER BY seq"
        )
        with self._connection() as db:
            rows = db.execute(query, (self._name, seq)).fetchall()
        return [from_row(_as_text(row)) for row in rows]

    def vectors(self, encoder: str, after: int) -> dict[int, NDArray[np.float32]]:
        """As ChangeStore.vectors."""
        query = (
            "SELECT seq, vector FROM astrolabe.vectors"
            " WHERE name = %s AND encoder = %s AND seq > %s"
        )
        with self._connection() as db:
            rows = db.execute(query, (self._name, encoder, after)).fetchall()
        return {seq: np.frombuffer(raw, np.float32) for seq, raw in rows}

    def save_vectors(self, encoder: str, vectors: Vectors) -> None:
        """As ChangeStore.save_vectors."""
        with self._connection() as db, db.transaction():
            self._save(db, encoder, vectors)

    def changed(self) -> bool:
        """As ChangeStore.changed; takes one look at one row."""
        history = self.history()
        last, self._seen = self._seen, history
        return history != last

    def history(self) -> tuple[str, int]:
        """As ChangeStore.history."""
        query = "SELECT history, last_seq FROM astrolabe.catalogues WHERE name = %s"
        with self._connection() as db:
            row = db.execute(query, (self._name,)).fetchone()
            if row is None:  # a database that was restored from before the first start
                self._prepare(db)
                row = db.execute(query, (self._name,)).fetchone()
        assert row is not None
        return str(row[0]), int(row[1])

    def mark_folded(self, bundle_id: str, seq: int) -> None:
        """As ChangeStore.mark_folded."""
        with self._connection() as db, db.transaction():
            db.execute(
                "INSERT INTO astrolabe.folds VALUES (%s, %s, %s)"
                " ON CONFLICT (name, bundle_id) DO UPDATE SET seq = EXCLUDED.seq",
                (self._name, bundle_id, seq),
            )
            db.execute(
                "DELETE FROM astrolabe.vectors WHERE name = %s AND seq <= %s", (self._name, seq)
            )

    def folds(self) -> dict[str, int]:
        """As ChangeStore.folds."""
        query = "SELECT bundle_id, seq FROM astrolabe.folds WHERE name = %s"
        with self._connection() as db:
            return dict(db.execute(query, (self._name,)).fetchall())

    def close(self) -> None:
        """As ChangeStore.close."""
        with self._lock:
            self._closed = True
            self._release()

    def hold_for_fork(self) -> None:
        """Wait for the lock, and keep it over the fork."""
        self._lock.acquire()

    def go_on_after_fork(self) -> None:
        """Release the lock after the fork, in the parent and in the child."""
        if os.getpid() != self._pid and self._db is not None:
            # Close the child's copy of the socket, and tell the server nothing: the session is the
            # parent's. An object that is kept tells it nothing later either.
            os.close(self._db.fileno())
            _OF_PARENT.append(self._db)
            self._db = None
        self._pid = os.getpid()
        self._lock.release()

    def _release(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db = None

    @contextlib.contextmanager
    def _connection(self) -> "Iterator[Connection[Any]]":
        with self._lock:
            try:
                if self._closed:
                    raise CatalogueUnavailable(f"{self.place}: the store has been closed")
                if self._db is None or self._db.closed:
                    self._db = self._connect()
                yield self._db
            except self._psycopg.Error as exc:
                if isinstance(exc, self._psycopg.OperationalError | self._psycopg.InterfaceError):
                    self._release()  # the next call connects anew
                raise CatalogueUnavailable(
                    f"{self.place} cannot be used: {_first_line(exc)}"
                ) from exc

    def _connect(self) -> "Connection[Any]":
        wait_ms = round(WAIT_S * 1000)
        db: Connection[Any] = self._psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=CONNECT_S,
            # A server that vanished without a word is noticed by its silence.
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            tcp_user_timeout=wait_ms,
            application_name="astrolabe",
            prepare_threshold=None,  # behind a pooler, prepared statements belong to others
        )
        db.execute(f"SET lock_timeout = {wait_ms}; SET statement_timeout = {2 * wait_ms}")
        row = db.execute("SHOW synchronous_commit").fetchone()
        if row == ("off",):
            db.close()
            raise CatalogueUnavailable(
                f"{self.place} has synchronous_commit off, so a crash would lose acknowledged "
                "changes: set it to on for this database or role"
            )
        return db

    def _prepare(self, db: "Connection[Any]") -> None:
        with db.transaction():
            db.execute("SELECT pg_advisory_xact_lock(%s)", (_TABLES_LOCK,))
            if db.execute("SELECT to_regclass('astrolabe.folds')").fetchone() == (None,):
                for table in _TABLES:
                    db.execute(table)
            db.execute(
                "INSERT INTO astrolabe.catalogues (name, last_seq, format) VALUES (%s, 0, %s)"
                " ON CONFLICT DO NOTHING",
                (self._name, VERSION),
            )
            query = "SELECT format FROM astrolabe.catalogues WHERE name = %s"
            (version,) = db.execute(query, (self._name,)).fetchone() or (None,)
        if version != VERSION:
            raise CatalogueCorrupt(
                f"{self.place}: catalogue {self._name} is of format {version}, this code reads "
                f"{VERSION}: open it with the Astrolabe that wrote it, or {RESTORE}"
            )

    def _count_up(self, db: "Connection[Any]", n: int) -> int:
        """Lock the catalogue until the transaction ends; returns the number of its next change."""
        query = (
            "UPDATE astrolabe.catalogues SET last_seq = last_seq + %s WHERE name = %s"
            " RETURNING last_seq"
        )
        row = db.execute(query, (n, self._name)).fetchone()
        if row is None:
            raise CatalogueUnavailable(
                f"{self.place} has no catalogue {self._name} any more: start the service again"
            )
        return int(row[0]) - n + 1

    def _finder(
        self, db: "Connection[Any]", changes: Sequence[Change], base: LabelOf, after: int
    ) -> LabelOf:
        """Finds the live label of each id in `changes`: by its newest change, or else `base`'s."""
        ids = {change.label_id for change in changes}
        # No label can have these ids, and no text of the database either.
        ids = {name for name in ids if "\0" not in name and not _has_surrogate(name)}
        query = (
            f"SELECT DISTINCT ON (label_id) {_COLUMNS} FROM astrolabe.changes WHERE name = %s AND"
            " label_id = ANY(%s) AND seq > %s ORDER BY label_id, seq DESC"
        )
        rows = db.execute(query, (self._name, list(ids), after)).fetchall()
        newest = {row[1]: from_row(_as_text(row)).label for row in rows}

        def live(label_id: str) -> Label | None:
            if label_id in newest:
                return newest[label_id]
            return base(label_id) if label_id in ids else None

        return live

    def _save(self, db: "Connection[Any]", encoder: str, vectors: Vectors) -> None:
        with db.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO astrolabe.vectors VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [
                    (self._name, encoder, seq, row.astype(np.float32).tobytes())
                    for seq, row in vectors.items()
                ],
            )


def _psycopg(url: str) -> Any:
    """The library, once it has read the URL; raises SettingsInvalid."""
    try:
        import psycopg
        import psycopg.conninfo
    except ImportError as exc:
        raise SettingsInvalid(
            "a catalogue in PostgreSQL needs the package psycopg: pip install 'astrolabe[postgres]'"
        ) from exc
    try:
        psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as exc:
        raise SettingsInvalid(
            f"catalogue_url is no URL of PostgreSQL ({_first_line(exc)}): write "
            "postgresql://USER@HOST:PORT/DATABASE"
        ) from exc
    return psycopg


def _as_bytes(row: tuple[Any, ...]) -> tuple[Any, ...]:
    seq, label_id, op, text, metadata = row
    return seq, label_id, op, None if text is None else text.encode(), metadata


def _as_text(row: tuple[Any, ...]) -> tuple[Any, ...]:
    seq, label_id, op, text, metadata = row
    return seq, label_id, op, None if text is None else text.decode(), metadata


def _has_surrogate(label_id: str) -> bool:
    """Whether an id holds a lone surrogate, which is no text."""
    return label_id.encode("utf-8", "ignore").decode() != label_id


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


_OF_PARENT: "list[Connection[Any]]" = []
"""Connections of a parent process, kept so that nothing tells the server that they end."""
