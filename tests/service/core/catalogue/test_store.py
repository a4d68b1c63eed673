"""What every store of changes does: whole calls or none, rules inside the transaction, its order.

Each test runs over a file and over a database.
"""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from service.core.catalogue.changes import Change
from service.core.labels.labels import Label
from service.errors import CatalogueUnavailable, InvalidValue, LabelExists, LabelUnknown
from tests.support.postgres import fresh_database
from tests.support.shop import add
from tests.support.stores import open_at

ROOT = Path(__file__).resolve().parents[4]
BASE = {"old": Label("old", "an old label", {"year": 1851})}


@pytest.fixture(params=["sqlite", "postgres"])
def place(request, tmp_path):
    """What names the catalogue `shop`: the path of a file, or the URL of a database."""
    if request.param == "sqlite":
        yield str(tmp_path / "shop.sqlite")
    else:
        with fresh_database(request.getfixturevalue("postgres").url) as url:
            yield url


@pytest.fixture
def store(place):
    opened = open_at(place)
    yield opened
    opened.close()


def append(store, *changes, after=0):
    return store.append(changes, BASE.get, after)


def test_changes_come_back_whole_and_in_order_after_reopening(store, place):
    append(store, add("a", "one", tags=["x", 1, True]), Change("remove", "old"))
    append(store, Change("update", "a", text="two"))
    store.close()
    again = open_at(place)
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


def test_a_writer_sees_what_another_has_just_written(store, place):
    other = open_at(place)
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


def test_a_closed_store_says_so(store):
    store.close()
    with pytest.raises(CatalogueUnavailable, match="closed"):
        store.since(0)


def test_a_call_without_a_change_is_no_write(store):
    assert store.append([], lambda name: None, 0) == []
    assert store.since(0) == []


def test_a_forked_process_opens_the_store_anew(store):
    append(store, add("a", "one"))
    if (child := os.fork()) == 0:  # this process has one thread
        seen = len(store.since(0)) == 1
        append(store, add("b", "two"))
        os._exit(0 if seen else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.changed()
    assert [change.label_id for change in store.since(0)] == ["a", "b"]
    with pytest.raises(LabelExists):
        append(store, add("b", "again"))


@pytest.mark.parametrize("text", ["a\0b", "é\u2028", "\U0001f40b", "x" * 70_000])
def test_any_text_comes_back_to_the_letter(store, text):
    append(store, add("a", text, note=text[:99]))
    assert store.since(0)[0].label == Label("a", text, {"note": text[:99]})


def test_an_id_that_a_database_cannot_hold_is_no_label(store):
    for op in ("add", "remove"):
        with pytest.raises((InvalidValue, LabelUnknown)):
            append(store, Change(op, "a\0b", text="x"))


def test_the_history_counts_changes_and_stays_the_same(store, place):
    first, seq = store.history()
    assert seq == 0
    append(store, add("a", "one"), add("b", "two"))
    with pytest.raises(LabelExists):
        append(store, add("c", "three"), add("a", "one"))
    store.close()
    again = open_at(place)
    assert again.history() == (first, 2)
    assert append(again, add("c", "three"))[0].seq == 3
    again.close()


def test_writers_and_readers_at_once_see_one_order_and_miss_nothing(place):
    n_writers, n_calls, per_call = 8, 25, 3
    n_changes = n_writers * n_calls * per_call
    open_at(place).close()

    def write(writer):
        store = open_at(place)
        for call in range(n_calls):
            names = [f"{writer}-{call}-{i}" for i in range(per_call)]
            append(store, *(add(name, "text") for name in names))
        store.close()

    seen = {reader: [] for reader in range(2)}

    def read(reader):
        store, last = open_at(place), 0
        while last < n_changes:
            changes = store.since(last)
            seen[reader] += [(change.seq, change.label_id) for change in changes]
            last = changes[-1].seq if changes else last
        store.close()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(n_writers)]
    threads += [threading.Thread(target=read, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [seq for seq, _ in seen[0]] == list(range(1, n_changes + 1))
    assert seen[0] == seen[1]
    for writer in range(n_writers):
        calls = [name for _, name in seen[0] if name.startswith(f"{writer}-")]
        assert calls == [f"{writer}-{c}-{i}" for c in range(n_calls) for i in range(per_call)]


WRITER = """
import sys
from tests.support.stores import open_at
from service.core.catalogue.changes import Change
store = open_at(sys.argv[1])
for call in range(10**6):
    names = [f"{sys.argv[2]}-{call}-{i}" for i in range(7)]
    store.append([Change("add", name, "text") for name in names], lambda _: None, 0)
    print(names[-1], flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_acknowledged(place):
    acknowledged = []
    for turn in range(3):
        command = [sys.executable, "-c", WRITER, place, str(turn)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
            acknowledged += [writer.stdout.readline().strip() for _ in range(10 + turn)]
            os.kill(writer.pid, signal.SIGKILL)
            acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
    store = open_at(place)
    kept = [change.label_id for change in store.since(0)]
    seqs = [change.seq for change in store.since(0)]
    store.close()
    assert set(acknowledged) <= set(kept)
    assert len(kept) % 7 == 0, "a call was kept in part"
    assert seqs == list(range(1, len(seqs) + 1))
