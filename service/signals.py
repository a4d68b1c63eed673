"""The signals that end a process of the service: each drains it first."""

import signal
from typing import Final

_ENDING: Final = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    *(signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
)
"""Every signal that ends a process where nothing is done about it, and that people send. The three
of the second line ask other servers for a slow stop, a new log file or a new program."""


def ending_signals() -> tuple[signal.Signals, ...]:
    """These signals, without SIGHUP where the process was started to ignore it, as by nohup."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(which for which in _ENDING if not (ignored and which is signal.SIGHUP))
