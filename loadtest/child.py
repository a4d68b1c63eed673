"""Starts this package's child processes so that none outlives its parent.

The standard input of a child is a pipe that the parent never writes to. The system closes the pipe
when the parent ends, even by a kill, and the child then exits. Each child has a session of its own,
so Ctrl-C reaches only the parent.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# A child has this long to end by itself before it is killed. A choice: a child ends on SIGTERM at
# once unless the machine is very busy.
END_S = 5.0


@contextmanager
def child_process(
    module: str,
    argument: str,
    log: Path,
    stdout: int = subprocess.DEVNULL,
    variables: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m module argument` and end it when the block ends.

    The child writes its standard error to the file `log`. `variables` are added to its environment.
    """
    package_parent = str(Path(__file__).resolve().parent.parent)
    search_path = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-m", module, argument],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=errors,
            env={
                **os.environ,
                **(variables or {}),
                "PYTHONPATH": os.pathsep.join(search_path),
            },
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            _end(process)


def exit_with_parent() -> None:
    """Make this child process exit at once when its parent ends; call it before slow imports."""
    # Python's own handler raises an exception, and Python can lose it (interrupt.py).
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_wait_for_parent, name="lifeline", daemon=True).start()


def _wait_for_parent() -> None:
    # os.read and not sys.stdin: a daemon thread inside a buffered read breaks a normal exit.
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
