"""Shedding: in an overload a request is judged by its headers, and refused with its body unread.

A refusal by the gate costs a task, a parsed head and a route; in a storm of thousands a second that
leaves no time for answers. So for a second after each refusal the connection itself asks the
batcher about every request and answers 429 where it would. What the same turn of the loop has let
through already counts as waiting, since none of it has reached the queue yet, and so does the time
for which a request lay unread in its socket.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from service.core.batching.admission import MIN_RETRY_AFTER_S
from service.errors import AstrolabeError, DeadlineUnreachable, OverloadError, QueueFull
from service.overload.resting import Resting

ARMED_S: Final = 1.0
WORDS_KEPT_S: Final = 0.005
"""One refusal's sentence serves for all in this time: to write it costs as much as to decide."""

PATH: Final = b"/v1/recommend"
TIMEOUT: Final = b"x-request-timeout-ms"
PRIORITY: Final = b"x-request-priority"
BULK: Final = b"bulk"
REASONS: Final = (QueueFull, DeadlineUnreachable)
_DIGITS: Final = 9


@dataclass(slots=True)
class Shedding:
    """Whether requests are judged by their connections now, and how.

    `ask` says why a request with this deadline and class would be refused behind so many others
    that were let through just now; `default_s` is how long who says nothing waits for an answer;
    `counted` is told of every request refused here. `resting` keeps what is refused within bounds.
    """

    clock: Callable[[], float]
    default_s: float
    ask: Callable[[float, bool, int], AstrolabeError | None]
    counted: Callable[[OverloadError], None]
    _until_s: float = 0.0
    _let_through: int = 0
    _error: OverloadError | None = None
    _worded_s: float = 0.0
    resting: Resting = field(init=False)

    def __post_init__(self) -> None:
        self.resting = Resting(self._runs_low)

    @property
    def armed(self) -> bool:
        """Whether a request was refused lately."""
        return self.clock() < self._until_s

    def begin(self, error: Exception) -> None:
        """A request was refused with this by the gate."""
        if isinstance(error, REASONS):
            self._until_s = self.clock() + ARMED_S

    def refusal(
        self, url: bytes, headers: Iterable[tuple[bytes, bytes]], unread_s: float
    ) -> OverloadError | None:
        """Why this request, which lay in its socket for so long, is refused; None if it may go on.

        What the gate has to refuse for another reason goes on too.
        """
        if not url.startswith(PATH):
            return None
        budget_s, bulk = self.default_s, False
        for name, value in headers:
            if name == TIMEOUT:
                if not value.isdigit() or len(value) > _DIGITS:
                    return None
                budget_s = int(value) / 1000
            elif name == PRIORITY:
                bulk = value == BULK
        now = self.clock()
        error: AstrolabeError | None
        if unread_s >= budget_s:
            error = DeadlineUnreachable("its deadline passed before anybody read it")
        else:
            error = self.ask(now + budget_s - unread_s, bulk, self._let_through)
        if not isinstance(error, REASONS):
            if self._let_through == 0:
                asyncio.get_running_loop().call_soon(self._turn_over)
            self._let_through += 1
            return None
        self._until_s = now + ARMED_S
        if type(error) is not type(self._error) or now >= self._worded_s + WORDS_KEPT_S:
            stay_away_s = max(error.retry_after_s or MIN_RETRY_AFTER_S, self.resting.turn_s)
            self._error = type(error)(error.detail, retry_after_s=stay_away_s)
            self._worded_s = now
        self.counted(error)
        return self._error

    def _turn_over(self) -> None:
        """What was let through has reached the queue."""
        self._let_through = 0

    def _runs_low(self) -> bool:
        """Whether so little waits that even half the usual deadline would do for a request."""
        deadline_s = self.clock() + self.default_s / 2
        return self.ask(deadline_s, False, self._let_through) is None
