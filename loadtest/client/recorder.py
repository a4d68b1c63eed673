"""Records of every query when the client sent it, when it ended and how.

The rows stand in the order in which LoadGen issued the queries. A row number is therefore LoadGen's
own sequence number, by which samples.py joins the rows with LoadGen's trace. Times are seconds of
`time.perf_counter`. A query that was never sent has NaN for `sent_s`.
"""

import math
from array import array

UNANSWERED = 0


class Recorder:
    """Columns with one entry a query: LoadGen's thread adds a row, the client's thread fills it.

    `server_timing` holds the Server-Timing headers of those answers that had one.
    """

    def __init__(self) -> None:
        self.query_row = array("q")
        self.sent_s = array("d")
        self.ended_s = array("d")
        self.code = array("h")
        self.server_timing: list[bytes] = []

    def add(self, query_row: int) -> int:
        """Add a row for a query that LoadGen has just issued, and return the row's number."""
        self.query_row.append(query_row)
        self.sent_s.append(math.nan)
        self.ended_s.append(math.nan)
        self.code.append(UNANSWERED)
        return len(self.code) - 1

    def end(self, row: int, code: int, sent_s: float, ended_s: float, timing: bytes) -> None:
        """Fill a row with the outcome `code` and the times of a query that has ended."""
        self.sent_s[row] = sent_s
        self.ended_s[row] = ended_s
        self.code[row] = code
        if timing:
            self.server_timing.append(timing)
