"""The outcomes of a query: one small number for each, and its name in a result.

The outcome of an HTTP answer is its status. A query without a usable answer has a negative number.
Only a 200 that carries JSON is a success; every other outcome counts as a failure of its own kind.
"""

from collections import Counter
from collections.abc import Iterable
from enum import IntEnum


class Failure(IntEnum):
    """Outcomes without a usable HTTP answer."""

    TIMEOUT = -1  # the client gave up on the answer, or on a connection to send the query on
    REFUSED = -2  # no connection could be opened
    LOST = -3  # the connection closed before the whole answer came
    BAD_ANSWER = -4  # not HTTP, or a 200 that is not JSON


OK = 200
_NAMES = {OK: "ok", **{int(failure): failure.name.lower() for failure in Failure}}


def outcome_name(code: int) -> str:
    """Name one outcome.

    >>> outcome_name(200), outcome_name(429), outcome_name(Failure.TIMEOUT)
    ('ok', 'http_429', 'timeout')
    """
    return _NAMES.get(code, f"http_{code}")


def count_outcomes(codes: Iterable[int]) -> dict[str, int]:
    """Count outcomes by name, most frequent first."""
    return {outcome_name(code): count for code, count in Counter(codes).most_common()}
