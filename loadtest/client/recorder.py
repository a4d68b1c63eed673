"""Holds what the client saw of every query: when it was sent, when it ended and how.

One row per query in the order LoadGen issued them, which is also LoadGen's own sequence number:
that is how the rows are joined with its trace afterwards. Times are seconds of the monotonic
clock; NaN means that it never happened (a refused query was never sent).
"""

import math
from array import array

UNANSWERED = 0


class Recorder:
    """Growing columns; rows are added on LoadGen's thread and filled in on the client's."""

    def __init__(self) -> None:
        self.query_row = array("q")
        self.sent_s = array("d")
        self.ended_s = array("d")
        self.code = array("h")
        self.server_timing: list[bytes] = []

    def add(self, query_row: int) -> int:
        """Open a row for a query that has just been issued and return its number."""
        self.query_row.append(query_row)
        self.sent_s.append(math.nan)
        self.ended_s.append(math.nan)
        self.code.append(UNANSWERED)
        return len(self.code) - 1

    def end(self, row: int, code: int, sent_s: float, ended_s: float, timing: bytes) -> None:
        """Write down how a query ended."""
        self.sent_s[row] = sent_s
        self.ended_s[row] = ended_s
        self.code[row] = code
        if timing:
            self.server_timing.append(timing)
