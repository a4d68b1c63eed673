"""A signal ends a program at once, whatever Python does when it comes.

Python's own way is to raise KeyboardInterrupt wherever the main thread is. That loses signals: what
is raised in a finaliser, in a weak reference's callback (every import has one) or in a callback
from C is printed and dropped, and an extension module that is being loaded makes an ImportError of
it, or aborts. So nothing is raised here: a thread waits for the signal and ends the process, also
while the main thread computes in C. Nothing is cleaned up, as after a kill. The twin of
loadtest/interrupt.py, which must stand without this package.
"""

import os
import select
import signal
import threading
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED: Final = 130
"""128 + SIGINT, the exit code that shells give to what Ctrl-C ended."""
STDERR: Final = 2


def end_on_signal(sentence: str) -> None:
    """From now on SIGINT and SIGTERM write `sentence` to standard error and exit with 130.

    Call it in the main thread, before imports that take their time, and never in a test's process.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # the signal module insists
    threading.Thread(target=_end, args=(reader, sentence), name="interrupt", daemon=True).start()
    # Written by the signal's handler in C, so it needs no bytecode of the main thread.
    signal.set_wakeup_fd(writer)
    for number in SIGNALS:
        # A second way to the thread, for where a library has put a descriptor of its own there.
        signal.signal(number, lambda came, _: _tell(writer, came))


def _tell(writer: int, number: int) -> None:
    os.write(writer, bytes([number]))


def _end(reader: int, sentence: str) -> None:
    while os.read(reader, 1)[0] not in SIGNALS:
        pass
    try:
        # Where nobody reads standard error any more, a write would wait for ever.
        if select.select([], [STDERR], [], 0)[1]:
            os.write(STDERR, f"{sentence}\n".encode())
    finally:
        os._exit(INTERRUPTED)
