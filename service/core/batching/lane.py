"""Lane: one thread that computes what its inbox brings, and lets the event loop go first.

It knows nothing of queues, pace or futures: `service.core.batching.batcher` feeds it and settles
what comes.
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
"""Where threads outnumber cores, the loop must not wait for its turn behind computations: it
refuses what they cannot do, and a refusal that waits helps nobody."""


class Lane:
    """A thread with an inbox; `jobs` and `since_s` are set while it computes.

    Not an executor's thread: those are joined at exit, so one stuck call would keep the process
    alive for ever, and a round trip through one costs 48 microseconds of CPU where this costs 25.
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
