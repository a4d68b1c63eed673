"""Decides when to try again, after how long, and when to give up. It does no I/O.

`Attempts` is one request over all its tries, under one deadline. After a failed try the client
passes the error to it, and either gets the seconds to wait or the error back.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from service.remote.errors import (
    AstrolabeClientError,
    AstrolabeConnectionError,
    AstrolabeHTTPError,
    AstrolabeTimeout,
)

REFUSED_UNDONE = 429
"""The one status that certainly means that the service did nothing. A 503 may come from a proxy
after the service has acted."""
REFUSED_FOR_NOW = (429, 503)


@dataclass(frozen=True, slots=True)
class Retries:
    """At most `max_tries`, with waits that double from `first_wait_s` up to `max_wait_s` seconds.

    If the service sends Retry-After, the wait is that time instead, up to `max_wait_s`. Every wait
    grows by up to a quarter at random, so that clients refused together do not return together.
    """

    max_tries: int = 4
    first_wait_s: float = 0.1
    max_wait_s: float = 5.0

    def wait_s(self, n_tries: int, retry_after_s: float | None, spread: float) -> float:
        """Seconds to wait after `n_tries` tries; `spread`, from 0 to 1, is the random part.

        >>> [Retries().wait_s(n, None, spread=0) for n in (1, 2, 3)]
        [0.1, 0.2, 0.4]
        >>> Retries().wait_s(1, retry_after_s=2, spread=1)
        2.5
        """
        base_s = self.first_wait_s * 2 ** (n_tries - 1) if retry_after_s is None else retry_after_s
        return min(base_s, self.max_wait_s) * (1 + spread / 4)


class Attempts:
    """The tries of one request. `clock` returns seconds, `spread` numbers from 0 to 1."""

    def __init__(
        self,
        repeatable: bool,
        timeout_s: float,
        retries: Retries,
        clock: Callable[[], float],
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._repeatable = repeatable
        self._timeout_s = timeout_s
        self._deadline_s = clock() + timeout_s
        self._retries = retries
        self._clock = clock
        self._spread = spread
        self._n_tries = 0

    def begin(self) -> float:
        """Start one more try; returns the seconds until the deadline.

        Raises AstrolabeTimeout if it has passed.
        """
        left_s = self._deadline_s - self._clock()
        if left_s <= 0:
            raise AstrolabeTimeout(f"no answer within {self._timeout_s:g} s")
        self._n_tries += 1
        return left_s

    def wait_s(self, error: AstrolabeClientError, undone: bool = False) -> float:
        """Seconds to wait before the next try; raises `error` if there must be no other try.

        `undone` says that the request certainly did not reach the service.
        """
        if self._n_tries >= self._retries.max_tries or not self._may_repeat(error, undone):
            raise error
        retry_after_s = error.retry_after_s if isinstance(error, AstrolabeHTTPError) else None
        wait_s = self._retries.wait_s(self._n_tries, retry_after_s, self._spread())
        if self._clock() + wait_s >= self._deadline_s:
            raise error  # the wait would reach the deadline: report the error now
        return wait_s

    def _may_repeat(self, error: AstrolabeClientError, undone: bool) -> bool:
        if isinstance(error, AstrolabeHTTPError):
            certainly_undone = error.status == REFUSED_UNDONE
            return certainly_undone or (self._repeatable and error.status in REFUSED_FOR_NOW)
        if isinstance(error, AstrolabeTimeout):
            return undone
        return undone or (self._repeatable and isinstance(error, AstrolabeConnectionError))
