"""LiveRecall: measures on real queries how much of the exact answer the served answers contain.

It searches a random share of the answered queries again at effort `exact`. It does so apart from
serving, on one thread of low priority; its queue is short and drops samples when full. The recall
in a bundle's operating points comes from test queries; this recall comes from the traffic.
"""

import logging
import os
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from service.background import Background
from service.bundle.manifest import EXACT
from service.core.types import Float32Rows, Hits

log = logging.getLogger(__name__)

MOST_K: Final = 10
"""Ranks that are compared, at most: the operating points state recall@10."""
QUEUE_SIZE: Final = 16
"""Samples that may wait. A choice: more only delay the measurement, and each holds a vector."""
WINDOW_SAMPLES: Final = 1000
"""A choice: the 95 % interval of the recall is then at most 0.062 wide, and it follows a change of
the traffic within so many samples."""
NICENESS: Final = 19
"""The lowest priority: every other thread goes first."""

SearchFn = Callable[[Float32Rows, int, str], Hits]
"""Takes embeddings (n, dim) float32, k and an effort, as `LabelIndex.search` does."""


class RecallObserver(Protocol):
    """Receives a LiveRecall's events on its thread; drops also on the thread that calls `offer`."""

    def live_recall(self, point: str, window: "Window") -> None:
        """The window of this operating point has changed."""
        ...

    def live_recall_dropped(self) -> None:
        """A sample was not measured, because the queue was full or the search failed."""
        ...


@dataclass(slots=True)
class Window:
    """Sums over the last `samples` samples of one operating point.

    `expected` counts the rows of the exact answers, `hits` those of them that were served.
    """

    hits: int = 0
    expected: int = 0
    samples: int = 0


@dataclass(frozen=True, slots=True)
class _Sample:
    embedding: NDArray[np.float32]
    rows: NDArray[np.int64]
    effort: str
    k: int


class LiveRecall:
    """Samples answers and measures them. Only one thread, the event loop's, may call `offer`."""

    def __init__(
        self,
        search: SearchFn,
        share: float,
        observer: RecallObserver,
        *,
        seed: int = 0,
        window: int = WINDOW_SAMPLES,
        queue_size: int = QUEUE_SIZE,
        background: Background | None = None,
    ) -> None:
        """Measure the share `share`, in [0, 1], of the answers; `search` must know `exact`.

        `background` starts the thread.
        """
        self._search = search
        self._share = share
        self._observer = observer
        self._background = background or Background()
        self._random = random.Random(seed)
        self._window = window
        self._queue: Queue[_Sample | None] = Queue(queue_size)
        self._last: dict[str, deque[tuple[int, int]]] = {}
        self._windows: dict[str, Window] = {}
        self._thread: threading.Thread | None = None

    def stop(self, timeout_s: float = 1.0) -> None:
        """End the thread and discard the samples that still wait."""
        if self._thread is None:
            return
        try:
            while True:
                self._queue.get_nowait()
        except Empty:
            self._queue.put(None)
        self._thread.join(timeout_s)

    def offer(
        self, embedding: NDArray[np.float32], rows: NDArray[np.int64], effort: str, k: int
    ) -> None:
        """Draw whether to measure this answer to a query without filters; never blocks.

        `embedding` (dim,) is the query's; `rows` (at most k,) are the answer's before any cut by
        score.
        """
        if self._random.random() >= self._share or effort == EXACT:
            return
        if self._thread is None:
            self._thread = self._background.thread("live-recall", self._run)
        try:
            self._queue.put_nowait(_Sample(embedding, rows, effort, k))
        except Full:
            self._observer.live_recall_dropped()

    def _run(self) -> None:
        _lower_priority()
        while (sample := self._queue.get()) is not None:
            self._measure(sample)

    def _measure(self, sample: _Sample) -> None:
        k = min(MOST_K, sample.k)
        try:
            exact = self._search(sample.embedding[None, :], k, EXACT).rows[0]
        except Exception:  # one failed search must not end the thread
            log.exception("live recall: the exact search failed")
            self._observer.live_recall_dropped()
            return
        hits = int(np.isin(exact, sample.rows[:k]).sum())
        self._record(sample.effort, hits, len(exact))

    def _record(self, point: str, hits: int, expected: int) -> None:
        last = self._last.setdefault(point, deque())
        window = self._windows.setdefault(point, Window())
        last.append((hits, expected))
        oldest = last.popleft() if len(last) > self._window else (0, 0)
        window.hits += hits - oldest[0]
        window.expected += expected - oldest[1]
        window.samples = len(last)
        self._observer.live_recall(point, window)


def _lower_priority() -> None:
    """Give this thread the lowest priority, on systems whose threads have their own niceness."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    except (AttributeError, OSError):
        log.debug("live recall runs at ordinary priority")
