"""Microseconds of a search as a lane makes it: one query at a time, on one thread.

A machine that does other things too disturbs some queries in every pass. So each query is searched
in a few passes, each in its own random order, and its median is taken: what disturbs one pass of a
query is left out, what makes a query slow by itself stays. A few such sets, and the best of them:
what disturbs minutes is left out too. The plain 99th percentile stands beside it.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.tune.candidate import Timing

PASSES: Final = 3
SETS: Final = 3
COLD_QUERIES: Final = 200
SWEPT_BYTES: Final = 8 << 20
"""Read between two cold queries: more than the caches that belong to one core."""
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
    """Time `search` on each of `queries` (n, dim); `carefully`: several sets, and cold caches."""
    for query in queries[:_WARM_UP]:
        search(query[None])
    sets = [
        np.stack([_pass(search, queries, rng, clock) for _ in range(PASSES)])
        for _ in range(SETS if carefully else 1)
    ]
    p50, p99 = undisturbed(sets)
    clocked = float(np.median([np.percentile(each, 99) for taken in sets for each in taken]))
    hot = (round(p50, 1), round(p99, 1), round(clocked, 1))
    if not carefully:
        return Timing(*hot)
    return Timing(*hot, *_cold(search, queries[:COLD_QUERIES], rng, clock))


def undisturbed(sets: list[Floats]) -> tuple[float, float]:
    """Median and 99th percentile of the best of `sets`, each (passes, n queries) of microseconds.

    The third query of the first set was disturbed once, the second set as a whole:

    >>> undisturbed([np.array([[1, 2, 3], [1, 2, 90], [1, 2, 3]]), np.full((3, 3), 8)])
    (2.0, 2.98)
    """
    medians = [np.median(taken, axis=0) for taken in sets]
    best = min(medians, key=lambda of_each: float(np.percentile(of_each, 99)))
    p50, p99 = np.percentile(best, (50, 99))
    return float(p50), float(p99)


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
    """Median and 99th percentile where other data went through the caches before each query."""
    swept = np.ones(SWEPT_BYTES // 8)
    taken = [_pass(search, queries, rng, clock, swept.sum) for _ in range(PASSES)]
    p50, p99 = undisturbed([np.stack(taken)])
    return round(p50, 1), round(p99, 1)
