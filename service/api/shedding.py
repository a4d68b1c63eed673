"""Shedding: for a moment after a request had to be refused, requests like it are refused unread.

A refusal by the gate costs 67 microseconds, most of it for a task and a parsed head; in a storm of
thousands a second that leaves no time for answers, and what waits in sockets grows stale unseen.
Within `SHED_S` of a refusal the connection itself answers 429 as soon as a request's bytes are
there. Then one is asked again, so a queue that has room is noticed at once.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from service.errors import DeadlineUnreachable, OverloadError, QueueFull

SHED_S: Final = 0.005
PATH: Final = b"/v1/recommend"
TIMEOUT: Final = b"x-request-timeout-ms"
_DIGITS: Final = 9


@dataclass(slots=True)
class Shedding:
    """The last refusal and what it holds for; `default_s` is the deadline of who names none.

    `counted` is told of every request refused here.
    """

    clock: Callable[[], float]
    default_s: float
    counted: Callable[[OverloadError], None]
    _until_s: float = 0.0
    _budget_s: float = 0.0
    _error: OverloadError | None = None

    def begin(self, error: Exception, budget_s: float) -> None:
        """A request that had this long to be answered was refused; others raise nothing here."""
        if isinstance(error, QueueFull | DeadlineUnreachable):
            # A new one: the one that was raised holds the request that it was raised for.
            self._error = type(error)(error.detail, retry_after_s=error.retry_after_s)
            self._budget_s = budget_s
            self._until_s = self.clock() + SHED_S

    def refusal(self, url: bytes, headers: Iterable[tuple[bytes, bytes]]) -> OverloadError | None:
        """Why this request would be refused now; None where it has to be asked."""
        if self._error is None or self.clock() >= self._until_s:
            self._error = None
            return None
        if not url.startswith(PATH):
            return None
        budget_s = self.default_s
        for name, value in headers:
            if name == TIMEOUT:
                if not value.isdigit() or len(value) > _DIGITS:
                    return None
                budget_s = int(value) / 1000
        if budget_s > self._budget_s:
            return None  # who has longer might be admitted
        self.counted(self._error)
        return self._error
