"""Lane: one thread that computes batches from its inbox, at a lower priority than the event loop.

A lane knows nothing of queues, pace or futures. `service.core.batching.batcher` fills its inbox and
answers the jobs.
"""

import contextlib
import math
import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

from service.core.batching.job import Job
from service.core.types import Query

NICENESS: Final = 5
"""If threads outnumber cores, the event loop must not wait behind computations, because it sends
the refusals. With this niceness their 99th percentile was 4 to 7 ms, without it 15 ms
(docs/decisions/0022)."""


class Lane:
    """A thread with an inbox. While it computes, `jobs` holds its batch and `since_s` its start.

    It is not a thread of an executor, for two reasons. Python joins those at exit, so one stuck
    call would keep the process alive for ever. And a round trip through an executor costs 48
    microseconds of CPU, through this inbox 25.
    """

    __slots__ = ("_body", "died", "inbox", "jobs", "since_s", "thread")

    def __init__(self, name: str, body: Callable[["Lane"], None]) -> None:
        self.inbox: SimpleQueue[list[Query] | None] = SimpleQueue()
        self.jobs: list[Job] = []
        self.since_s = math.inf
        self.died = False
        self._body = body
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        if sys.platform == "linux":  # elsewhere a thread has no niceness of its own
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        self._body(self)
