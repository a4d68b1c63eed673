"""How a query can end, as one small number per query, and the name each ending has in a result.

A status code stands for itself; what never became an HTTP answer has a negative number. Only a
200 that carries JSON is a success: everything else is counted by kind.
"""

from collections import Counter
from collections.abc import Iterable
from enum import IntEnum


class Failure(IntEnum):
    """Endings without a usable HTTP answer."""

    TIMEOUT = -1  # sent, or still waiting for a connection, when the client gave up
    REFUSED = -2  # no connection could be opened
    LOST = -3  # the connection closed before the whole answer came
    BAD_ANSWER = -4  # not HTTP, or a 200 that is not JSON


OK = 200
_NAMES = {OK: "ok", **{int(failure): failure.name.lower() for failure in Failure}}


def outcome_name(code: int) -> str:
    """Name one ending.

    >>> outcome_name(200), outcome_name(429), outcome_name(Failure.TIMEOUT)
    ('ok', 'http_429', 'timeout')
    """
    return _NAMES.get(code, f"http_{code}")


def count_outcomes(codes: Iterable[int]) -> dict[str, int]:
    """Count endings by name, most frequent first."""
    return {outcome_name(code): count for code, count in Counter(codes).most_common()}
