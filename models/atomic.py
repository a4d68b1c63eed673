"""Writes that happen whole or not at all, and survive a power cut once they return.

Everything `models` leaves on disk goes through here: data files, run files, bundles.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def write_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary sibling, flush it to disk, then put it in place.

    Raises whatever `write` raises (a full disk included); the old file is then still whole.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


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
