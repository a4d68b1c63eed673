"""Times searches in microseconds, as a lane makes them: one query at a time, on one thread.

Other work on the machine disturbs some queries in every pass. So all queries are searched in
several passes, each in a new random order, and each query counts with the lower quartile of its
times. This leaves out disturbances, and keeps what makes a query slow by itself. The plain 99th
percentile of a pass is reported too. Measurements: docs/decisions/0016.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.tune.candidate import Timing

PASSES: Final = 3
CAREFUL_PASSES: Final = 9
"""With medians of three passes, neighbouring entries of a grid came out at 886 and 368 us; with the
lower quartile of nine they mostly differ by 5 to 15 % (docs/decisions/0016)."""

COLD_QUERIES: Final = 200
"""A choice: sweeping the caches makes a cold query slow to measure."""

SWEPT_BYTES: Final = 8 << 20
"""Bytes that are read before each cold query. A choice: more than the caches of a single core.
"""
_WARM_UP: Final = 50

Floats = NDArray[np.float64]


def time_search(
    search: Callable[[NDArray[np.float32]], Any],
    queries: NDArray[np.float32],
    rng: np.random.Generator,
    *,
    carefully: bool,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time `search` on each of `queries` (n, dim); `carefully` in more passes, and cold too."""
    for query in queries[:_WARM_UP]:
        search(query[None])
    passes = CAREFUL_PASSES if carefully else PASSES
    taken = np.stack([_pass(search, queries, rng, clock) for _ in range(passes)])
    p50, p99 = undisturbed(taken)
    hot = (p50, p99, round(float(np.median(np.percentile(taken, 99, axis=1))), 1))
    if not carefully:
        return Timing(*hot)
    return Timing(*hot, *_cold(search, queries[:COLD_QUERIES], rng, clock))


def undisturbed(taken: Floats) -> tuple[float, float]:
    """Median and 99th percentile over queries of `taken` (passes, n queries), in microseconds.

    The lower quartile is the best of three passes, and the third best of nine. Here the last query
    was disturbed in two passes:

    >>> undisturbed(np.array([[1, 2, 9], [1, 2, 90], [1, 2, 3]]))
    (2.0, 3.0)
    """
    of_each = np.percentile(taken, 25, axis=0, method="lower")
    p50, p99 = np.percentile(of_each, (50, 99))
    return round(float(p50), 1), round(float(p99), 1)


def _pass(
    search: Callable[[NDArray[np.float32]], Any],
    queries: NDArray[np.float32],
    rng: np.random.Generator,
    clock: Callable[[], float],
    between: Callable[[], Any] = lambda: None,
) -> Floats:
    """Microseconds of each query, searched in a random order."""
    taken = np.empty(len(queries))
    for i in rng.permutation(len(queries)):
        query = queries[i : i + 1]
        between()
        started = clock()
        search(query)
        taken[i] = clock() - started
    return taken * 1e6


def _cold(
    search: Callable[[NDArray[np.float32]], Any],
    queries: NDArray[np.float32],
    rng: np.random.Generator,
    clock: Callable[[], float],
) -> tuple[float, float]:
    """Median and 99th percentile with other data read through the caches before each query."""
    swept = np.ones(SWEPT_BYTES // 8)
    taken = [_pass(search, queries, rng, clock, swept.sum) for _ in range(PASSES)]
    return undisturbed(np.stack(taken))
