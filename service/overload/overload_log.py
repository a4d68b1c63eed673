"""OverloadLog: at most one log line a second for requests that an overload refused or made late.

A refusal should cost next to nothing, and an overload brings thousands a second. A line for each
took longer than the refusal itself, and told nothing that the metrics do not tell. Requests that
came too late (504) or whose clients left (499) are as many then, so they count here too.
"""

import math
from typing import Final

INTERVAL_S: Final = 1.0
"""Between two lines. A choice: often enough to see an overload begin and end in the log."""

STATUSES: Final = frozenset({429, 499, 504})


class OverloadLog:
    """Decides which requests of these statuses get a log line. The metrics count all of them."""

    __slots__ = ("_last_line_s", "_n_unlogged")

    def __init__(self) -> None:
        self._last_line_s = -math.inf
        self._n_unlogged = 0

    def due(self, now: float) -> int:
        """Whether the request at `now` (seconds) gets a line.

        Returns -1 for no, else how many requests got none since the last line.
        """
        if now - self._last_line_s < INTERVAL_S:
            self._n_unlogged += 1
            return -1
        n_unlogged, self._last_line_s, self._n_unlogged = self._n_unlogged, now, 0
        return n_unlogged
