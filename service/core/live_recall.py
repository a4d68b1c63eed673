"""LiveRecall: how much of the exact answer the served answers find, measured on real queries.

A random share of answered queries is searched again at effort `exact`, off the hot path: one thread
of low priority, a short queue that drops instead of waiting. What a bundle's operating points say
was measured on its test queries; this says it of the traffic.
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

from service.bundle.manifest import EXACT
from service.core.types import Float32Rows, Hits

log = logging.getLogger(__name__)

MOST_K: Final = 10
QUEUE_SIZE: Final = 16
WINDOW_SAMPLES: Final = 1000
NICENESS: Final = 19

SearchFn = Callable[[Float32Rows, int, str], Hits]
"""(n, dim) float32, k and effort to Hits: a LabelIndex's `search`."""


class RecallObserver(Protocol):
    """What a LiveRecall reports; called on its own thread and, for drops, on the offerer's."""

    def live_recall(self, point: str, window: "Window") -> None:
        """The window of this operating point has changed."""
        ...

    def live_recall_dropped(self) -> None:
        """A sampled query was not searched again, because the queue was full or search failed."""
        ...


@dataclass(slots=True)
class Window:
    """Sums over the last samples of one operating point: rows found of the exact rows wanted."""

    found: int = 0
    wanted: int = 0
    samples: int = 0


@dataclass(frozen=True, slots=True)
class _Sample:
    embedding: NDArray[np.float32]
    rows: NDArray[np.int64]
    effort: str
    k: int


class LiveRecall:
    """Samples answers and measures them. `offer` is for one thread, the event loop's."""

    def __init__(
        self,
        search: SearchFn,
        share: float,
        observer: RecallObserver,
        *,
        seed: int = 0,
        window: int = WINDOW_SAMPLES,
        queue_size: int = QUEUE_SIZE,
    ) -> None:
        """`share` of the answers is measured; `search` must know the effort `exact`."""
        self._search = search
        self._share = share
        self._observer = observer
        self._random = random.Random(seed)
        self._window = window
        self._queue: Queue[_Sample | None] = Queue(queue_size)
        self._last: dict[str, deque[tuple[int, int]]] = {}
        self._windows: dict[str, Window] = {}
        self._thread: threading.Thread | None = None

    def stop(self, timeout_s: float = 1.0) -> None:
        """End the thread; what still waits is not measured."""
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
        """Maybe measure one answered query without filters; never waits.

        `embedding` (dim,) and `rows` (at most k,) are as served, before any cut by score.
        """
        if self._random.random() >= self._share or effort == EXACT:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="live-recall", daemon=True)
            self._thread.start()
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
        except Exception:  # measuring must never end because one search broke
            log.exception("live recall: the exact search failed")
            self._observer.live_recall_dropped()
            return
        found = int(np.isin(exact, sample.rows[:k]).sum())
        self._note(sample.effort, found, len(exact))

    def _note(self, point: str, found: int, wanted: int) -> None:
        last = self._last.setdefault(point, deque())
        window = self._windows.setdefault(point, Window())
        last.append((found, wanted))
        gone = last.popleft() if len(last) > self._window else (0, 0)
        window.found += found - gone[0]
        window.wanted += wanted - gone[1]
        window.samples = len(last)
        self._observer.live_recall(point, window)


def _lower_priority() -> None:
    """Let every other thread go first, where the system gives threads a niceness of their own."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    except (AttributeError, OSError):
        log.debug("live recall runs at ordinary priority")
