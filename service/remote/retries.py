"""When to try again, how long to wait before that, and when to give up. No I/O, and no own clock.

`Attempts` is one request over all its tries, under one deadline: the client sends, hands over what
came of it, and is told to wait so many seconds, or gets the error.
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
"""The one status that says for certain that nothing was done; a 503 may be a proxy's, too late."""
REFUSED_FOR_NOW = (429, 503)


@dataclass(frozen=True, slots=True)
class Retries:
    """At most `max_tries`, with waits that double from `first_wait_s` up to `max_wait_s`.

    A wait that the service asks for (Retry-After) is kept instead, up to `max_wait_s`. Every wait
    grows by up to a quarter at random: clients refused together should not come back together.
    """

    max_tries: int = 4
    first_wait_s: float = 0.1
    max_wait_s: float = 5.0

    def wait_s(self, n_tries: int, retry_after_s: float | None, spread: float) -> float:
        """Seconds to wait after this many tries; `spread` is between 0 and 1.

        >>> [Retries().wait_s(n, None, spread=0) for n in (1, 2, 3)]
        [0.1, 0.2, 0.4]
        >>> Retries().wait_s(1, retry_after_s=2, spread=1)
        2.5
        """
        asked = self.first_wait_s * 2 ** (n_tries - 1) if retry_after_s is None else retry_after_s
        return min(asked, self.max_wait_s) * (1 + spread / 4)


class Attempts:
    """The tries of one request. `clock` counts seconds; `spread` gives numbers from 0 to 1."""

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
        """Start one more try; returns the seconds left, or raises AstrolabeTimeout at none."""
        left_s = self._deadline_s - self._clock()
        if left_s <= 0:
            raise AstrolabeTimeout(f"no answer within {self._timeout_s:g} s")
        self._n_tries += 1
        return left_s

    def wait_s(self, error: AstrolabeClientError, undone: bool = False) -> float:
        """Seconds to wait before the next try, or raises `error` where there must be none.

        `undone` says that the request certainly did not reach the service.
        """
        if self._n_tries >= self._retries.max_tries or not self._may_repeat(error, undone):
            raise error
        retry_after_s = error.retry_after_s if isinstance(error, AstrolabeHTTPError) else None
        wait_s = self._retries.wait_s(self._n_tries, retry_after_s, self._spread())
        if self._clock() + wait_s >= self._deadline_s:
            raise error  # waiting would use up what is left, so say now what is wrong
        return wait_s

    def _may_repeat(self, error: AstrolabeClientError, undone: bool) -> bool:
        if isinstance(error, AstrolabeHTTPError):
            certainly_undone = error.status == REFUSED_UNDONE
            return certainly_undone or (self._repeatable and error.status in REFUSED_FOR_NOW)
        if isinstance(error, AstrolabeTimeout):
            return undone
        return undone or (self._repeatable and isinstance(error, AstrolabeConnectionError))
