"""Starts this package's helper processes so that none is ever left behind.

A child gets a pipe as its standard input that the parent never writes to. It closes when the
parent ends, however that happens, and the child then exits. Children sit in a session of their
own, so Ctrl-C reaches the parent alone, and they end with it.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

END_S = 5.0


@contextmanager
def child_process(
    module: str, argument: str, log: Path, stdout: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m module argument`, standard error going to `log`; ended on leaving."""
    package_parent = str(Path(__file__).resolve().parent.parent)
    search_path = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-m", module, argument],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(search_path)},
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            _end(process)


def exit_with_parent() -> None:
    """In a child, before imports that take their time: exit at once when the parent is gone."""
    # Python's own handler raises an exception, which may be lost (interrupt.py).
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_wait_for_parent, name="lifeline", daemon=True).start()


def _wait_for_parent() -> None:
    # os.read rather than sys.stdin: a daemon thread inside a buffered read breaks a normal exit.
    while os.read(0, 1):
        pass
    os._exit(1)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
