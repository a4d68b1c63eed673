"""When a worker that says nothing counts as silent."""

import math
import mmap
import time
from typing import Final

START_S: Final = 600.0
"""A worker must have told its master once within this time. A choice: where each worker opens the
bundle itself, the largest one is open by then."""

LATE_S: Final = 1.0
"""Where the master itself wakes up later than planned by more than this, the whole machine or
container may have stood still, so every worker gets its full time again. A choice: an ordinary
delay is far shorter."""


class Heartbeats:
    """The moment at which each worker last told its master that it is alive.

    They lie in memory that all share, so that a worker needs one store to tell, and no system call
    that could block. Moments are seconds of `time.monotonic`, which all processes of a machine
    share; 0 stands for a worker that has not told yet. A worker only calls `beat`.
    """

    def __init__(self, n_workers: int, silence_s: float = math.inf) -> None:
        """A worker that has told nothing for `silence_s` seconds is silent."""
        self._silence_s = silence_s
        self._moments_s = memoryview(mmap.mmap(-1, 8 * n_workers)).cast("d")
        self._started_s = [0.0] * n_workers
        self._master_was_late_s = 0.0

    def beat(self, number: int) -> None:
        """The worker of this number is alive now."""
        self._moments_s[number] = time.monotonic()

    def start(self, number: int, now_s: float) -> None:
        """A new worker of this number starts, and has not told yet."""
        self._moments_s[number] = 0.0
        self._started_s[number] = now_s

    def has_told(self, number: int) -> bool:
        """Whether the worker of this number has told since it was started."""
        return self._moments_s[number] != 0.0

    def on_wake(self, now_s: float, planned_s: float) -> None:
        """The master is awake now, and had planned to be by `planned_s`."""
        if now_s > planned_s + LATE_S:
            self._master_was_late_s = now_s

    def silent_at_s(self, number: int) -> float:
        """When the worker of this number counts as silent, unless it tells before."""
        last_s = self._moments_s[number]
        since_s = max(last_s or self._started_s[number], self._master_was_late_s)
        return since_s + (self._silence_s if last_s else max(START_S, self._silence_s))
