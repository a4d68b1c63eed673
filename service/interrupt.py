"""Ends a program at once on a signal, whatever Python does at that moment.

Python itself raises KeyboardInterrupt at the place where the main thread is. That can lose the
signal: Python prints and drops what is raised in a finaliser, in a weak reference's callback (every
import has one) or in a callback from C. An extension module that is being loaded turns it into an
ImportError, or aborts. Here a thread waits for the signal and ends the process, even while the main
thread computes in C. As after a kill, nothing is cleaned up. loadtest/interrupt.py is the same
code, because loadtest must not import this package.
"""

import os
import select
import signal
import threading
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED: Final = 130
"""128 + SIGINT: the exit code that shells report for a program ended by Ctrl-C."""
STDERR: Final = 2


def end_on_signal(sentence: str) -> None:
    """From now on SIGINT and SIGTERM write `sentence` to standard error and exit with 130.

    Call it in the main thread, before slow imports, and never in the process of a test.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # `set_wakeup_fd` requires it
    threading.Thread(target=_end, args=(reader, sentence), name="interrupt", daemon=True).start()
    # Python's C handler writes to it, so the main thread need not run any bytecode.
    signal.set_wakeup_fd(writer)
    for number in SIGNALS:
        # A second way to wake the thread, in case a library sets its own wake-up descriptor.
        signal.signal(number, lambda number, _: _tell(writer, number))


def _tell(writer: int, number: int) -> None:
    os.write(writer, bytes([number]))


def _end(reader: int, sentence: str) -> None:
    while os.read(reader, 1)[0] not in SIGNALS:
        pass
    try:
        # If nobody reads standard error any more, a write could block for ever.
        if select.select([], [STDERR], [], 0)[1]:
            os.write(STDERR, f"{sentence}\n".encode())
    finally:
        os._exit(INTERRUPTED)
