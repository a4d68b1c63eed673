"""OverloadLog: one log line a second for what overload does to requests, however many there are.

A refusal should cost next to nothing, and under overload there are thousands a second: a line for
each took longer than the refusal itself, and said nothing that the metrics do not. Requests that
came too late or were given up are as many then.
"""

import math
from typing import Final

INTERVAL_S: Final = 1.0
STATUSES: Final = frozenset({429, 499, 504})


class OverloadLog:
    """Says which of these requests is logged. Every one of them is counted in the metrics."""

    __slots__ = ("_logged_s", "_unlogged")

    def __init__(self) -> None:
        self._logged_s = -math.inf
        self._unlogged = 0

    def due(self, now: float) -> int:
        """How many were left out since the last line where this one is to be logged, else -1."""
        if now - self._logged_s < INTERVAL_S:
            self._unlogged += 1
            return -1
        unlogged, self._logged_s, self._unlogged = self._unlogged, now, 0
        return unlogged
