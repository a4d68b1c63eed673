"""Progress for people and for logs: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)

T = TypeVar("T")
_LOG_EVERY_S = 15.0


def track(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Pass items through, showing how many are done, the rate and the time left.

    Where `models` logs no progress, as on a rank that does not lead, nothing is shown.
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
            left_s = (total - done) / rate
            log.info("%s: %d of %d, %.1f a second, %.0f s left", what, done, total, rate, left_s)
