"""A file that is replaced, removed or cut while it is open takes no change that would be lost."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from service.core.catalogue.sqlite_store import SqliteStore
from service.core.labels.labels import Label
from service.errors import CatalogueUnavailable
from tests.support.shop import add

NAME = "shop.sqlite"


def nothing(_: str) -> Label | None:
    return None


def append(store: SqliteStore, *label_ids: str) -> None:
    store.append([add(label_id, f"text of {label_id}") for label_id in label_ids], nothing, 0)


def ids(store: SqliteStore) -> list[str]:
    return [change.label_id for change in store.since(0)]


def backed_up(path: Path) -> Path:
    """A backup of the file at this moment, as SQLite's own command makes one."""
    backup = path.with_name("backup")
    source, target = sqlite3.connect(path), sqlite3.connect(backup)
    source.backup(target)
    source.close()
    target.close()
    return backup


def moved_over(path: Path) -> None:
    os.replace(path.with_name("backup"), path)


def copied_over(path: Path) -> None:
    shutil.copyfile(path.with_name("backup"), path)


def another_folder(path: Path) -> None:
    os.rename(path.parent, path.parent.with_name("old"))
    path.parent.mkdir()
    shutil.copyfile(path.parent.with_name("old") / "backup", path)


def removed(*endings: str) -> Callable[[Path], None]:
    return lambda path: [os.unlink(f"{path}{ending}") for ending in endings] and None


def cut(ending: str, size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(f"{path}{ending}", size)


def copied_anew(ending: str) -> Callable[[Path], None]:
    def copy(path: Path) -> None:
        shutil.copyfile(f"{path}{ending}", f"{path}.copy")
        os.replace(f"{path}.copy", f"{path}{ending}")

    return copy


CHANGES = {
    "moved over": moved_over,
    "copied over": copied_over,
    "folder": another_folder,
    "removed": removed(""),
    "removed all": removed("", "-wal", "-shm"),
    "removed log": removed("-wal"),
    "removed index": removed("-shm"),
    "cut to nothing": cut("", 0),
    "cut to a page": cut("", 4096),
    "log cut": cut("-wal", 0),
    "file anew": copied_anew(""),
    "log anew": copied_anew("-wal"),
    "index anew": copied_anew("-shm"),
}


HARMLESS = (copied_over,)
"""What the log, which holds every page changed before the fork, makes good at the next start."""


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("forked", [False, True])
def test_no_change_is_acknowledged_that_a_restart_would_lose(
    tmp_path: Path, change: Callable[[Path], None], forked: bool
) -> None:
    path = tmp_path / "state" / NAME
    store = SqliteStore(path, "shop")
    append(store, *(f"old-{i}" for i in range(100)))
    backed_up(path)
    append(store, *(f"new-{i}" for i in range(900)))
    if forked:  # as when workers start: the connection is another, the catalogue is the same
        store.hold_for_fork()
        store.go_on_after_fork()
        append(store, "after the fork")
    change(path)
    acknowledged, refusals = [], []
    for i in range(10):
        try:
            append(store, f"late-{i}")
            acknowledged.append(f"late-{i}")
        except CatalogueUnavailable as exc:
            refusals.append(str(exc))
    store.close()
    assert all("is no longer the file that is open" in said for said in refusals)
    assert all("docs/catalogue.md" in said for said in refusals)
    if not forked and change in HARMLESS:
        again = SqliteStore(path, "shop")
        assert ids(again)[-10:] == acknowledged
        assert len(ids(again)) == 1010
        again.close()
    else:
        assert acknowledged == []


def test_a_file_that_comes_back_takes_changes_again(tmp_path: Path) -> None:
    path = tmp_path / NAME
    store = SqliteStore(path, "shop")
    append(store, "a")
    os.rename(path, tmp_path / "away")
    with pytest.raises(CatalogueUnavailable, match="is gone"):
        append(store, "b")
    assert ids(store) == ["a"]
    os.rename(tmp_path / "away", path)
    append(store, "b")
    store.close()
    again = SqliteStore(path, "shop")
    assert ids(again) == ["a", "b"]
    again.close()


def test_a_file_that_was_replaced_between_two_connections_is_not_taken_for_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / NAME
    store = SqliteStore(path, "shop")
    append(store, "a")
    store.hold_for_fork()
    shutil.copyfile(path, tmp_path / "copy")
    os.replace(tmp_path / "copy", path)
    store.go_on_after_fork()
    with pytest.raises(CatalogueUnavailable, match="another file lies in its place"):
        append(store, "b")
    store.close()


def test_what_sqlite_itself_does_to_the_files_stops_nobody(tmp_path: Path) -> None:
    """Checkpoints by this process and by others, also those that cut the log; another's backup."""
    path = tmp_path / NAME
    one, other = SqliteStore(path, "shop"), SqliteStore(path, "shop")
    for turn in range(6):
        append(one, *(f"{turn} one {i}" for i in range(2000)))
        append(other, f"{turn} other")
        operator = sqlite3.connect(path)
        operator.execute(f"PRAGMA wal_checkpoint({('PASSIVE', 'FULL', 'TRUNCATE')[turn % 3]})")
        operator.close()
        backed_up(path)
    one.close()
    append(other, "last")
    other.close()
    again = SqliteStore(path, "shop")
    assert len(ids(again)) == 6 * 2001 + 1
    again.close()
