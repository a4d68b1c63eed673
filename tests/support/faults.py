"""Faults of a machine that tests bring about: a disk that refuses, files that come late, a freeze.

Tests may run as root, whom no permission stops. So a refusal is the operating system's own error,
raised where the service calls the system.
"""

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def refused(call: str, number: int) -> Iterator[None]:
    """Every call of this function, such as `os.replace`, raises the OSError of this number."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(call, refuse)
        yield


@contextmanager
def replaced_by_a_file(folder: Path) -> Iterator[None]:
    """A plain file stands where the folder was."""
    aside = folder.with_name(f"{folder.name}.aside")
    folder.rename(aside)
    folder.write_text("in the way")
    try:
        yield
    finally:
        folder.unlink()
        aside.rename(folder)


FAULTS_OF_A_FOLDER: dict[str, Callable[[Path], AbstractContextManager[None]]] = {
    "full": lambda _: refused("os.fsync", errno.ENOSPC),
    "read-only": lambda _: refused("os.replace", errno.EROFS),
    "no permission": lambda _: refused("os.replace", errno.EACCES),
    "an error of the disk": lambda _: refused("os.fsync", errno.EIO),
    "replaced by a file": replaced_by_a_file,
}
"""What can befall a folder in which the service keeps its state."""


@contextmanager
def late_files(folder: Path, *names: str) -> Iterator[None]:
    """These files of a folder, or all of it, arrive only at the end of the block."""
    aside = folder.with_name(f".{folder.name}.late")
    if not names:
        folder.rename(aside)
        yield
        aside.rename(folder)
        return
    aside.mkdir()
    for name in names:
        shutil.move(folder / name, aside / name)
    yield
    for name in names:
        shutil.move(aside / name, folder / name)
    aside.rmdir()


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The process stands still; nothing it does gets on."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it may have been killed meanwhile
            os.kill(pid, signal.SIGCONT)
