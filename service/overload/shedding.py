"""Shedding: in an overload the connection refuses requests by their headers, before their bodies.

Where the gate refuses a request, it has already spent a task and a route on it. Thousands of such
refusals a second leave no time for answers. So for a second after each refusal the connection
itself asks the batcher about every request, and answers 429 where the batcher would refuse it.
Requests that were admitted in the same turn of the event loop have not reached the queue yet, so
the batcher is told how many they are. The time that a request waited in its socket is taken from
its deadline. Measurements: docs/decisions/0024.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from service.core.batching.admission import MIN_RETRY_AFTER_S
from service.errors import AstrolabeError, DeadlineUnreachable, OverloadError, QueueFull
from service.overload.resting import Resting

ARMED_S: Final = 1.0
"""How long connections judge requests after a refusal. It must outlast a turn of the loop, and a
turn that reads 3,000 connections takes 250 ms. With 5 ms most requests went through the gate
(decision 0024)."""

REUSE_ERROR_S: Final = 0.005
"""How long one error object answers further refusals. To write its sentence costs as much as the
decision. A choice: its figures are out of date by at most this much."""

PATH: Final = b"/v1/recommend"
TIMEOUT: Final = b"x-request-timeout-ms"
PRIORITY: Final = b"x-request-priority"
BULK: Final = b"bulk"
REASONS: Final = (QueueFull, DeadlineUnreachable)
_MAX_DIGITS: Final = 9
"""The gate refuses a longer timeout too."""


@dataclass(slots=True)
class Shedding:
    """Says whether connections judge requests now, and judges them.

    `clock` gives the batchers' seconds. `default_timeout_s` is the timeout of a request without
    `X-Request-Timeout-Ms`. `would_refuse(deadline_s, bulk, n_ahead)` returns the error with which
    the batcher would refuse a request behind `n_ahead` others, or None. `on_refused` is called with
    the error of every request that is refused here. `resting` bounds the rate of refusals.
    """

    clock: Callable[[], float]
    default_timeout_s: float
    would_refuse: Callable[[float, bool, int], AstrolabeError | None]
    on_refused: Callable[[OverloadError], None]
    _armed_until_s: float = 0.0
    _n_admitted: int = 0
    _error: OverloadError | None = None
    _error_s: float = 0.0
    resting: Resting = field(init=False)

    def __post_init__(self) -> None:
        self.resting = Resting(self._queue_is_short)

    @property
    def armed(self) -> bool:
        """Whether connections judge requests now: a request was refused lately."""
        return self.clock() < self._armed_until_s

    def arm(self, error: Exception) -> None:
        """Begin to judge requests if the gate refused one with an `error` that means overload."""
        if isinstance(error, REASONS):
            self._armed_until_s = self.clock() + ARMED_S

    def refusal(
        self, url: bytes, headers: Iterable[tuple[bytes, bytes]], unread_s: float
    ) -> OverloadError | None:
        """The error that refuses this request; None if the request goes on to the gate.

        `unread_s` is how long it waited in its socket. A request that the gate will refuse for
        another reason goes on too.
        """
        if not url.startswith(PATH):
            return None
        budget_s, bulk = self.default_timeout_s, False
        for name, value in headers:
            if name == TIMEOUT:
                if not value.isdigit() or len(value) > _MAX_DIGITS:
                    return None
                budget_s = int(value) / 1000
            elif name == PRIORITY:
                bulk = value == BULK
        now = self.clock()
        error: AstrolabeError | None
        if unread_s >= budget_s:
            error = DeadlineUnreachable("its deadline passed before the service read it")
        else:
            error = self.would_refuse(now + budget_s - unread_s, bulk, self._n_admitted)
        if not isinstance(error, REASONS):
            if self._n_admitted == 0:
                asyncio.get_running_loop().call_soon(self._forget_admitted)
            self._n_admitted += 1
            return None
        self._armed_until_s = now + ARMED_S
        if type(error) is not type(self._error) or now >= self._error_s + REUSE_ERROR_S:
            retry_after_s = max(error.retry_after_s or MIN_RETRY_AFTER_S, self.resting.wait_s)
            self._error = type(error)(error.detail, retry_after_s=retry_after_s)
            self._error_s = now
        self.on_refused(error)
        return self._error

    def _forget_admitted(self) -> None:
        """Forget the admitted requests: they have reached the queue."""
        self._n_admitted = 0

    def _queue_is_short(self) -> bool:
        """Whether a request with half the default timeout would be admitted now."""
        deadline_s = self.clock() + self.default_timeout_s / 2
        return self.would_refuse(deadline_s, False, self._n_admitted) is None
