"""Ends a program at once on SIGINT or SIGTERM, whatever Python does when the signal comes.

Python itself raises KeyboardInterrupt wherever the main thread is, and so loses signals. It prints
and drops an exception in a finaliser, in a weak reference's callback (every import has one) and in
a callback from C. An extension module that is being loaded turns the exception into an ImportError,
or aborts. This module raises nothing. A thread waits for the signal and ends the process, even
while the main thread computes in C. Nothing is cleaned up, as after a kill. service/interrupt.py
has the same code, because this package imports nothing from the service.
"""

import os
import select
import signal
import threading
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED: Final = 130
"""128 + SIGINT, the exit code by which a shell reports that Ctrl-C ended a program."""
STDERR: Final = 2


def end_on_signal(sentence: str) -> None:
    """Make SIGINT and SIGTERM write `sentence` to standard error and exit with 130.

    Call it in the main thread, before slow imports, and never in a test's process.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # set_wakeup_fd takes no blocking descriptor
    threading.Thread(target=_end, args=(reader, sentence), name="interrupt", daemon=True).start()
    # The signal's handler in C writes to it, which needs no bytecode of the main thread.
    signal.set_wakeup_fd(writer)
    for number in SIGNALS:
        # A second way to the thread, in case a library sets a wake-up descriptor of its own.
        signal.signal(number, lambda signum, _: _notify(writer, signum))


def _notify(writer: int, signum: int) -> None:
    os.write(writer, bytes([signum]))


def _end(reader: int, sentence: str) -> None:
    while os.read(reader, 1)[0] not in SIGNALS:
        pass
    try:
        # A write to a full pipe that nobody reads would wait for ever.
        if select.select([], [STDERR], [], 0)[1]:
            os.write(STDERR, f"{sentence}\n".encode())
    finally:
        os._exit(INTERRUPTED)
