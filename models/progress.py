"""Progress of long loops: a bar on a terminal, log lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)

T = TypeVar("T")
_LOG_EVERY_S = 15.0
"""Our choice: often enough to see that a job lives, seldom enough for a log of hours."""


def track(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield the items, and show how many are done, the rate and the time to the end.

    It shows nothing if the logger `models` is above INFO, as on ranks other than the first.
    """
    if not log.isEnabledFor(logging.INFO):
        yield from items
        return
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, leave=False, dynamic_ncols=True)
        return
    started = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= _LOG_EVERY_S:
            last = now
            rate = done / (now - started)
            remaining_s = (total - done) / rate
            log.info(
                "%s: %d of %d, %.1f a second, %.0f s left", what, done, total, rate, remaining_s
            )
