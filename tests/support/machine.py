"""Faults that befall a running service from outside it: its disk, its files, its limits.

Each is a context manager that lifts the fault at its end. The service must run without root's
right to ignore permissions (`as_ordinary_user`); what mounts something needs root, and a mount
namespace of its own, which vanishes with its last process (`unshare --mount`).
"""

import ctypes
import errno
import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

PR_CAPBSET_DROP: Final = 24
"""prctl(2), `linux/prctl.h`."""
CAPABILITIES_OVER_FILES: Final = (1, 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (capabilities(7), `linux/capability.h`)."""
PIDS: Final = Path("/sys/fs/cgroup/pids")
"""The controller of process counts (cgroup v1), where a limit holds for root too."""


def as_ordinary_user() -> None:
    """Let permissions hold for the program that this process starts, even if it is root's."""
    if os.geteuid() == 0:
        for capability in CAPABILITIES_OVER_FILES:
            ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def may_mount() -> bool:
    """Whether a process can have mounts of its own here."""
    try:
        return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


@contextmanager
def disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A small disk of its own lies at the folder, with ext4 on it."""
    image = folder.with_name(f"{folder.name}.img")
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    folder.mkdir()
    _run("mkfs.ext4", "-q", "-m", "0", image)
    _run("mount", "-o", "loop", image, folder)
    try:
        yield
    finally:
        _run("umount", "--lazy", folder)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """No byte is free on the disk of the folder."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 10, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
        os.fsync(file.fileno())
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def short_files(pids: list[int]) -> Iterator[None]:
    """No file of these processes may grow: a full disk where none can be mounted."""
    with _limited(pids, resource.RLIMIT_FSIZE, dict.fromkeys(pids, 0)):
        yield


@contextmanager
def standing(folder: Path) -> Iterator[None]:
    """Whatever writes to the disk of the folder waits, as for a disk that does not answer."""
    _run("fsfreeze", "--freeze", folder)
    try:
        yield
    finally:
        _run("fsfreeze", "--unfreeze", folder)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder is mounted for reading only."""
    _run("mount", "--bind", folder, folder)
    _run("mount", "-o", "remount,bind,ro", folder)
    try:
        yield
    finally:
        _run("umount", "--lazy", folder)


@contextmanager
def forbidden(path: Path) -> Iterator[None]:
    """Nobody may read, write or enter."""
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        yield
    finally:
        path.chmod(mode)


@contextmanager
def replaced(path: Path, by: bytes | None = None, folder: bool = False) -> Iterator[None]:
    """Other bytes, or a folder, or nothing lies at the path; at the end the very same file does."""
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    if folder:
        path.mkdir()
    elif by is not None:
        path.write_bytes(by)
    try:
        yield
    finally:
        if path.is_dir():
            shutil.rmtree(path)
        elif aside.is_dir():
            path.unlink()
        aside.replace(path)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another program holds the write lock of an SQLite file."""
    db = sqlite3.connect(database, isolation_level=None)
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
    finally:
        db.close()


@contextmanager
def bad_row(database: Path) -> Iterator[None]:
    """Another program has written a change into a catalogue's file that cannot be read."""
    db = sqlite3.connect(database, isolation_level=None, timeout=10.0)
    row = "INSERT INTO changes SELECT MAX(seq) + 1, 'no-json', 'add', 'sea', '{' FROM changes"
    try:
        db.execute(row)
        yield
        db.execute("DELETE FROM changes WHERE label_id = 'no-json'")
    finally:
        db.close()


@contextmanager
def no_descriptor(pid: int) -> Iterator[None]:
    """The process can open no further file."""
    used = set(map(int, os.listdir(f"/proc/{pid}/fd")))
    free = min(set(range(max(used) + 2)) - used)
    with _limited([pid], resource.RLIMIT_NOFILE, {pid: free}):
        yield


@contextmanager
def no_new_process(pid: int, group: Path) -> Iterator[None]:
    """The process can start no other one; `group` names a control group that does not exist."""
    group.mkdir()
    (group / "cgroup.procs").write_text(str(pid))
    (group / "pids.max").write_text("1")
    try:
        yield
    finally:
        (group / "pids.max").write_text("max")


def leave(group: Path) -> None:
    """Move what is left in a control group to the one above, and remove it."""
    for pid in (group / "cgroup.procs").read_text().split():
        with suppress(ProcessLookupError):
            (group.parent / "cgroup.procs").write_text(pid)
    group.rmdir()


@contextmanager
def unreadable_figures(pid: int, scratch: Path) -> Iterator[None]:
    """/proc says nonsense of the process's CPU time."""
    scratch.write_text("1 (x) S " + "nonsense " * 50)
    figures = f"/proc/{pid}/stat"
    _run("mount", "--bind", scratch, figures)
    try:
        yield
    finally:
        with suppress(subprocess.CalledProcessError):  # it goes with the process
            _run("umount", "--lazy", figures)


@contextmanager
def _limited(pids: list[int], which: int, limits: dict[int, int]) -> Iterator[None]:
    old = {pid: resource.prlimit(pid, which) for pid in pids}
    for pid in pids:
        resource.prlimit(pid, which, (limits[pid], old[pid][1]))
    try:
        yield
    finally:
        for pid in pids:
            with suppress(OSError):  # it may have ended
                resource.prlimit(pid, which, old[pid])


def _run(*words: object) -> None:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(errno.EIO, f"{words[0]}: {done.stderr.strip()}")
