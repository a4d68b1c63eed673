"""The file of changes: whole calls or none, rules inside the transaction, clear errors."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service.core.catalogue.changes import Change
from service.core.catalogue.sqlite_store import STAGING, SqliteStore, store_path
from service.core.labels.labels import Label
from service.errors import (
    CatalogueCorrupt,
    CatalogueUnavailable,
    InvalidValue,
    LabelExists,
    LabelUnknown,
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


def test_changes_come_back_whole_and_in_order_after_reopening(store, tmp_path):
    append(store, add("a", "one", tags=["x", 1, True]), Change("remove", "old"))
    append(store, Change("update", "a", text="two"))
    store.close()
    again = SqliteStore(tmp_path / "shop.sqlite", "shop")
    found = [(c.seq, c.op, c.label_id, c.label) for c in again.since(0)]
    again.close()
    tags = {"tags": ["x", 1, True]}
    assert found == [
        (1, "add", "a", Label("a", "one", tags)),
        (2, "remove", "old", None),
        (3, "update", "a", Label("a", "two", tags)),
    ]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (add("old", "again"), LabelExists, r"changes\[1\]: label 'old' exists"),
        (add("a", "twice"), LabelExists, "label 'a' exists"),
        (Change("update", "b", text="x"), LabelUnknown, "no label 'b' to update"),
        (Change("remove", "b"), LabelUnknown, "no label 'b' to remove"),
        (add("b", " \t"), InvalidValue, r"changes\[1\]\.text is blank"),
        (Change("add", "b"), InvalidValue, "text is blank"),
        (add("", "text"), InvalidValue, r"changes\[1\]\.id is '', which has no character"),
        (add("a\nb", "text"), InvalidValue, "a control character"),
        (add("a/../b", "text"), InvalidValue, "between slashes"),
        (add("b", "\ud800"), InvalidValue, "lone surrogate"),
        (add("b", "text", bad=object()), InvalidValue, "metadata is no JSON object"),
        (Change("remove", "\ud800"), LabelUnknown, "no label"),
    ],
)
def test_a_call_with_one_wrong_change_keeps_nothing(store, change, error, says):
    with pytest.raises(error, match=says):
        append(store, add("a", "one"), change)
    assert store.since(0) == []


def test_an_update_leaves_what_it_does_not_name(store):
    [stored] = append(store, Change("update", "old", metadata={"year": 1852}))
    assert stored.label == Label("old", "an old label", {"year": 1852})
    [stored] = append(store, Change("update", "old", text="new text"))
    assert stored.label == Label("old", "new text", {"year": 1852})


def test_a_removed_label_may_be_added_again(store):
    append(store, Change("remove", "old"))
    with pytest.raises(LabelUnknown):
        append(store, Change("remove", "old"))
    append(store, add("old", "back"))


def test_changes_before_a_fold_no_longer_decide(store):
    append(store, Change("remove", "old"))
    append(store, Change("update", "old", text="x"), after=1)  # the newer bundle has it again


def test_a_writer_sees_what_another_has_just_written(store, tmp_path):
    other = SqliteStore(tmp_path / "shop.sqlite", "shop")
    assert not store.changed()
    append(other, add("a", "one"))
    assert store.changed()
    assert not store.changed()
    with pytest.raises(LabelExists):
        append(store, add("a", "two"))
    other.close()


def test_embeddings_are_kept_by_encoder_and_forgotten_once_folded(store):
    row = np.arange(4, dtype=np.float32)
    store.append([add("a", "x"), add("b", "y")], BASE.get, 0, "e1", {0: row, 1: 2 * row})
    store.save_vectors("e2", {1: 3 * row})
    assert {seq: kept.tolist() for seq, kept in store.vectors("e1", 1).items()} == {
        2: (2 * row).tolist()
    }
    store.mark_folded("bundle", 1)
    assert list(store.vectors("e1", 0)) == [2]
    assert store.vectors("e2", 0) == {}
    assert store.folds() == {"bundle": 1}
    assert len(store.since(0)) == 2


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


def test_a_forked_process_opens_the_file_anew(store):
    append(store, add("a", "one"))
    before = store._db
    if (child := os.fork()) == 0:  # this process has one thread
        seen = store.changed() and len(store.since(0)) == 1
        append(store, add("b", "two"))
        os._exit(0 if seen else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store._db is not before
    assert store.changed()
    assert [change.label_id for change in store.since(0)] == ["a", "b"]
    with pytest.raises(LabelExists):
        append(store, add("b", "again"))


def test_a_closed_store_says_so(store):
    store.close()
    with pytest.raises(CatalogueUnavailable, match="closed"):
        store.since(0)


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


WRITER = """
import sys
from pathlib import Path
from service.core.catalogue.sqlite_store import SqliteStore
from service.core.catalogue.changes import Change
store = SqliteStore(Path(sys.argv[1]), "shop")
for call in range(10**6):
    names = [f"{sys.argv[2]}-{call}-{i}" for i in range(7)]
    store.append([Change("add", name, "text") for name in names], lambda _: None, 0)
    print(names[-1], flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path):
    path = tmp_path / "shop.sqlite"
    acknowledged = []
    for turn in range(3):
        command = [sys.executable, "-c", WRITER, str(path), str(turn)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
            acknowledged += [writer.stdout.readline().strip() for _ in range(10 + turn)]
            os.kill(writer.pid, signal.SIGKILL)
            acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
    store = SqliteStore(path, "shop")
    kept = [change.label_id for change in store.since(0)]
    store.close()
    assert set(acknowledged) <= set(kept)
    assert len(kept) % 7 == 0, "a call was kept in part"


def test_a_call_without_a_change_is_no_write(store):
    assert store.append([], lambda name: None, 0) == []
    assert store.since(0) == []
