"""The file of changes: whole calls or none, rules inside the transaction, clear errors."""

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from service.core.catalogue.sqlite_store import STAGING, SqliteStore, store_path
from service.core.labels.labels import Label
from service.errors import (
    CatalogueCorrupt,
    CatalogueUnavailable,
)
from tests.support.shop import add

ROOT = Path(__file__).resolve().parents[4]
BASE = {"old": Label("old", "an old label", {"year": 1851})}


@pytest.fixture
def store(tmp_path):
    opened = SqliteStore(tmp_path / "shop.sqlite", "shop")
    yield opened
    opened.close()


def append(store, *changes, after=0):
    return store.append(changes, BASE.get, after)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"not a database at all" * 100, r"shop\.sqlite"),
        (b"", r"shop\.sqlite has no bytes, so changes may be lost.*restore it.*or remove it"),
    ],
    ids=["garbage", "nothing"],
)
def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path, content, says):
    path = tmp_path / "shop.sqlite"
    path.write_bytes(content)
    with pytest.raises(CatalogueCorrupt, match=says):
        SqliteStore(path, "shop")
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_refused(tmp_path):
    path = tmp_path / "shop.sqlite"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (x)")
    db.close()
    with pytest.raises(CatalogueCorrupt, match="another program"):
        SqliteStore(path, "shop")


def test_a_change_of_another_program_that_cannot_be_read_is_named(store, tmp_path):
    append(store, add("a", "one"))
    other = sqlite3.connect(tmp_path / "shop.sqlite")
    other.execute("INSERT INTO changes VALUES (2, 'b', 'add', 'two', '{')")
    other.commit()
    with pytest.raises(CatalogueCorrupt, match=r"change 2 .* restore it from a backup"):
        store.since(0)
    other.execute("DELETE FROM changes WHERE seq = 2")
    other.commit()
    other.close()
    assert [change.label_id for change in store.since(0)] == ["a"]


def test_the_file_of_another_catalogue_is_refused(store, tmp_path):
    with pytest.raises(CatalogueCorrupt, match="'shop', the bundle is of 'books'"):
        SqliteStore(tmp_path / "shop.sqlite", "books")


def test_a_flipped_page_is_noticed_when_the_file_is_opened(tmp_path):
    path = tmp_path / "shop.sqlite"
    store = SqliteStore(path, "shop")
    append(store, *(add(f"a{i}", f"text {i}") for i in range(2000)))
    store.close()
    raw = bytearray(path.read_bytes())
    raw[8192:12288] = b"\xff" * 4096
    path.write_bytes(raw)
    with pytest.raises(CatalogueCorrupt):
        SqliteStore(path, "shop")


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CatalogueUnavailable, match=r"shop\.sqlite cannot be used"):
        SqliteStore(tmp_path / "file" / "shop.sqlite", "shop")


def test_a_file_that_could_only_be_read_when_it_was_opened_is_written_to_later(
    store, tmp_path, monkeypatch
):
    path, connect = tmp_path / "shop.sqlite", sqlite3.connect
    append(store, add("a", "one"))
    with monkeypatch.context() as read_only:  # as on a disk that is mounted for reading
        read_only.setattr(os, "access", lambda *_: False)
        read_only.setattr(
            sqlite3, "connect", lambda it, **more: connect(f"file:{it}?mode=ro", uri=True, **more)
        )
        other = SqliteStore(path, "shop")
        assert len(other.since(0)) == 1
        with pytest.raises(CatalogueUnavailable, match="readonly"):
            append(other, add("b", "two"))
    append(other, add("b", "two"))
    other.close()
    assert [change.label_id for change in store.since(0)] == ["a", "b"]


def test_a_lock_that_does_not_go_away_is_said(store, tmp_path, monkeypatch):
    other = sqlite3.connect(tmp_path / "shop.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store._db.execute("PRAGMA busy_timeout = 1")
    with pytest.raises(CatalogueUnavailable, match="locked"):
        append(store, add("a", "one"))
    other.execute("ROLLBACK")
    other.close()
    append(store, add("a", "one"))


def test_names_of_catalogues_stay_inside_the_folder(tmp_path):
    assert store_path(tmp_path, "../evil").parent == tmp_path
    assert store_path(tmp_path, "books").name == "books.sqlite"


OPENERS = """
import sys
from pathlib import Path
from service.core.catalogue.sqlite_store import SqliteStore
from service.core.catalogue.changes import Change
folder, name, n_files = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print(flush=True)
sys.stdin.readline()
for n in range(n_files):
    store = SqliteStore(folder / str(n) / "shop.sqlite", "shop")
    for i in range(5):
        store.append([Change("add", f"{name}-{i}", "text")], lambda _: None, 0)
    store.close()
"""


@pytest.mark.parametrize(("n_processes", "n_files"), [(4, 1), (8, 20)])
def test_processes_that_open_new_files_together_share_them(tmp_path, n_processes, n_files):
    with contextlib.ExitStack() as ends:
        writers = [
            ends.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", OPENERS, str(tmp_path), str(n), str(n_files)],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for n in range(n_processes)
        ]
        for writer in writers:
            writer.stdout.readline()
        for writer in writers:  # all have started: the end of their input sets them off together
            writer.stdin.close()
        assert [writer.wait() for writer in writers] == [0] * n_processes
    for folder in sorted(tmp_path.iterdir()):
        store = SqliteStore(folder / "shop.sqlite", "shop")
        assert len({change.label_id for change in store.since(0)}) == 5 * n_processes
        store.close()
        assert [path.name for path in folder.iterdir()] == ["shop.sqlite"]


KILLED_CREATOR = """
import os, sys
from pathlib import Path
from service.core.catalogue.sqlite_store import SqliteStore
os.link = lambda *_: os._exit(1)
SqliteStore(Path(sys.argv[1]), "shop")
"""


@pytest.mark.parametrize("made_meanwhile", [False, True], ids=["no file", "another made the file"])
def test_the_next_start_removes_what_a_kill_left_of_a_new_file(tmp_path, made_meanwhile):
    path, aside = tmp_path / "state" / "shop.sqlite", tmp_path / "shop.sqlite"
    subprocess.run([sys.executable, "-c", KILLED_CREATOR, str(path)], cwd=ROOT, check=False)
    [left_over] = path.parent.iterdir()
    still_filled = left_over.with_name(STAGING + str(os.getppid()))
    still_filled.mkdir()
    if made_meanwhile:
        SqliteStore(aside, "shop").close()
        aside.rename(path)
    SqliteStore(path, "shop").close()
    assert set(path.parent.iterdir()) == {path, still_filled}
