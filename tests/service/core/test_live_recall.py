import threading

import numpy as np
import pytest

from service.core.live_recall import LiveRecall, Window
from service.core.types import Float32Rows, Hits

SAFETY_S = 10.0
VECTOR = np.ones(4, np.float32)


class Observer:
    """Keeps what is reported, and lets a test wait for it."""

    def __init__(self) -> None:
        self.windows: dict[str, Window] = {}
        self.dropped = 0
        self.reported = threading.Semaphore(0)

    def live_recall(self, point: str, window: Window) -> None:
        self.windows[point] = Window(window.hits, window.expected, window.samples)
        self.reported.release()

    def live_recall_dropped(self) -> None:
        self.dropped += 1
        self.reported.release()

    def wait(self, times: int) -> None:
        for _ in range(times):
            assert self.reported.acquire(timeout=SAFETY_S)


class Exact:
    """An exact search that finds rows 0, 1, 2, ...; `hold` makes it wait."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Semaphore(0)
        self.error: Exception | None = None

    def __call__(self, queries: Float32Rows, k: int, effort: str) -> Hits:
        assert queries.shape == (1, 4)
        self.asked.append((k, effort))
        self.entered.release()
        assert self.open.wait(SAFETY_S)
        if self.error is not None:
            raise self.error
        return Hits(np.arange(k)[None, :], np.zeros((1, k), np.float32))


def rows(*given: int) -> np.ndarray:
    return np.array(given, np.int64)


def test_recall_is_the_share_of_the_exact_top_k_that_was_served() -> None:
    exact, seen = Exact(), Observer()
    recall = LiveRecall(exact, 1.0, seen)
    recall.offer(VECTOR, rows(0, 1, 7, 8), "fast", 4)
    recall.offer(VECTOR, rows(3, 2, 1, 0), "fast", 4)
    recall.offer(VECTOR, rows(*range(20)), "balanced", 20)
    seen.wait(3)
    recall.stop()
    assert seen.windows == {"fast": Window(2 + 4, 8, 2), "balanced": Window(10, 10, 1)}
    assert exact.asked == [(4, "exact"), (4, "exact"), (10, "exact")]


def test_only_a_share_is_measured_and_exact_answers_never() -> None:
    exact, seen = Exact(), Observer()
    exact.open.clear()
    recall = LiveRecall(exact, 0.2, seen, queue_size=1)
    for _ in range(1000):
        recall.offer(VECTOR, rows(0), "fast", 1)
        recall.offer(VECTOR, rows(0), "exact", 1)
    exact.open.set()
    recall.stop()
    assert 150 < seen.dropped < 250  # all that was drawn but the two that found a place


def test_a_full_queue_drops_and_counts_and_never_waits() -> None:
    exact, seen = Exact(), Observer()
    recall = LiveRecall(exact, 1.0, seen, queue_size=2)
    exact.open.clear()
    recall.offer(VECTOR, rows(0), "fast", 1)
    assert exact.entered.acquire(timeout=SAFETY_S)  # one is being measured, two may wait
    for _ in range(5):
        recall.offer(VECTOR, rows(0), "fast", 1)
    assert seen.dropped == 3
    exact.open.set()
    seen.wait(3 + 3)
    recall.stop()
    assert seen.windows["fast"].samples == 3


def test_window_slides() -> None:
    exact, seen = Exact(), Observer()
    recall = LiveRecall(exact, 1.0, seen, window=2)
    for served in (5, 0, 0):  # missed, found, found
        recall.offer(VECTOR, rows(served), "fast", 1)
        seen.wait(1)
    recall.stop()
    assert seen.windows["fast"] == Window(2, 2, 2)


def test_a_search_that_breaks_is_counted_and_the_next_one_is_measured(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exact, seen = Exact(), Observer()
    recall = LiveRecall(exact, 1.0, seen)
    exact.error = RuntimeError("broken")
    recall.offer(VECTOR, rows(0), "fast", 1)
    seen.wait(1)
    exact.error = None
    recall.offer(VECTOR, rows(0), "fast", 1)
    seen.wait(1)
    recall.stop()
    assert (seen.dropped, seen.windows["fast"].samples) == (1, 1)
    assert "the exact search failed" in caplog.text


def test_stopping_what_never_started_does_nothing() -> None:
    LiveRecall(Exact(), 1.0, Observer()).stop()
