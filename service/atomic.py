"""Writes that happen whole or not at all, and survive a power cut once they return.

Everything that `models` leaves on disk goes through here (data files, run files, bundles), and so
does the service's file of what to serve. Two processes may write one file: the last one wins.
"""

import glob
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def write_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary sibling, flush it to disk, then put it in place.

    Raises whatever `write` raises (a full disk included); the old file is then still whole. What a
    kill leaves of a write, the next write of that file by the same machine removes.
    """
    start = f".{path.name}.{platform.node()}."  # process ids of another machine say nothing here
    for left_over in path.parent.glob(f"{glob.escape(start)}*.tmp"):
        if not is_running(left_over.name.removeprefix(start).removesuffix(".tmp")):
            left_over.unlink(missing_ok=True)
    temporary = path.with_name(f"{start}{os.getpid()}.tmp")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def is_running(pid: str) -> bool:
    """Whether what this other process may be filling is to be left alone."""
    return pid.isdigit() and int(pid) != os.getpid() and Path(f"/proc/{pid}").exists()


def write_text(path: Path, text: str) -> None:
    """A text in UTF-8, whole or not at all."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_array(path: Path, array: NDArray[Any]) -> None:
    """One array as .npy, whole or not at all."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # by its name np.save would append .npy
            np.save(file, array, allow_pickle=False)

    write_atomic(path, write)


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def staging_folder(parent: Path, start: str = ".staging-") -> Iterator[Path]:
    """A fresh hidden folder in `parent` to fill; gone afterwards unless `publish` renamed it.

    Its name is `start` and the id of this process.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_left_over(parent, start)
    folder = parent / f"{start}{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_left_over(parent: Path, start: str) -> None:
    """Remove the staging folders of this beginning whose process was killed."""
    for left_over in parent.glob(f"{glob.escape(start)}*"):
        if not is_running(left_over.name.removeprefix(start)):
            shutil.rmtree(left_over, ignore_errors=True)
