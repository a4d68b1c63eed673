"""Background: starts the tasks and threads that work beside the requests, with a last resort.

Nobody waits for such work, so nobody would notice its death. Each piece has a name here. An error
that it raises is logged once, counted under its name, and the work goes on after a pause. Pauses
double as long as the same work fails. `healthy` says which work fails or does not come back, for
a gauge. tests/arch/test_background.py lists what is started otherwise, and why.
"""

import asyncio
import contextlib
import inspect
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Any, Final

from service.errors import AstrolabeError

log = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.25
"""Wait after the first failure. A choice: a fault of a moment delays the work by no more."""

LONGEST_PAUSE_S: Final = 30.0
"""Longest wait between two tries. A choice: work is resumed this long after its fault is mended at
the latest, and a lasting fault costs two tries a minute."""

STUCK_S: Final = 600.0
"""One run of a task that takes longer counts as unhealthy. A choice: to open the largest bundle
from a cold disk takes less."""

LOOP_LOG_EVERY_S: Final = 60.0
"""Errors of one kind in callbacks of the event loop are logged once in this time; all are counted.
A choice: a callback may fail at every request."""

EVENT_LOOP: Final = "event-loop"
"""The name under which errors count that no callback or task of the event loop has caught."""

Work = Callable[[], Awaitable[Any] | object]
"""A coroutine function, or a function that does not block."""


class LastResort:
    """What becomes of the errors of one piece of work: one log line, a count, and a pause."""

    def __init__(self, task: str, on_error: Callable[[str], None]) -> None:
        """`on_error` counts an error of the task that it is given."""
        self._task = task
        self._on_error = on_error
        self._n_failures = 0
        self._logged: tuple[type[BaseException], str] | None = None

    @property
    def failing(self) -> bool:
        """Whether the last run failed."""
        return self._n_failures > 0

    def failed(self, error: BaseException) -> float:
        """Log the error if it differs from the last one, and count it.

        Returns how many seconds to wait before the next try.
        """
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._n_failures, 30))
        self._n_failures += 1
        with contextlib.suppress(Exception):  # the last resort has no other one behind it
            self._on_error(self._task)
        fault = (type(error), str(error))
        if fault != self._logged:
            self._logged = fault
            fields = {"task": self._task}
            if isinstance(error, AstrolabeError):  # foreseen: its sentence says enough
                fields |= {"code": error.code, "why": error.detail}
                log.error("a background task fails", extra={"fields": fields})
            else:
                log.error("a background task fails", extra={"fields": fields}, exc_info=error)
        return pause_s

    def worked(self) -> None:
        """Forget earlier failures, after a line in the log if there were any."""
        if self._n_failures:
            fields = {"task": self._task, "failures": self._n_failures}
            log.info("a background task works again", extra={"fields": fields})
        self._n_failures, self._logged = 0, None


class Background:
    """The background work of one process. Start tasks on the event loop, threads from anywhere."""

    def __init__(
        self,
        on_error: Callable[[str], None] = lambda task: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_error` counts an error of the task that it is given; called from any thread.

        `clock` gives seconds.
        """
        self._on_error = on_error
        self._clock = clock
        self._resorts: dict[str, LastResort] = {}
        self._running_since_s: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def last_resort(self, name: str) -> LastResort:
        """The last resort of this name, which all work of the name shares."""
        return self._resorts.setdefault(name, LastResort(name, self._on_error))

    def healthy(self) -> dict[str, bool]:
        """Each name, and whether its last run succeeded and no run lasts longer than `STUCK_S`."""
        since_s, now = self._running_since_s, self._clock()
        return {
            name: not resort.failing and now - since_s.get(name, now) <= STUCK_S
            for name, resort in list(self._resorts.items())
        }

    async def run(self, name: str, work: Work) -> float:
        """Do this work once; its error goes to the last resort.

        Returns the pause before another try, 0 if it succeeded.
        """
        resort = self.last_resort(name)
        self._running_since_s[name] = self._clock()
        try:
            outcome = work()
            if inspect.isawaitable(outcome):
                await outcome
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return resort.failed(exc)  # something that it awaited was cancelled, not this task
        except Exception as exc:
            return resort.failed(exc)
        finally:
            self._running_since_s.pop(name, None)
        resort.worked()
        return 0.0

    def repeat(
        self,
        name: str,
        work: Work,
        every_s: float,
        subject: Callable[[], Hashable] = lambda: None,
    ) -> "asyncio.Task[None]":
        """Do this work again and again, `every_s` seconds after the last run or after a pause.

        `subject` tells the state of what the work looks at, such as the stamp of a file. Where it
        changes, a pause ends early. It must not block.
        """

        async def forever() -> None:
            pause_s = 0.0
            while True:
                state, rest_s = _state(subject), pause_s - every_s
                await asyncio.sleep(every_s)
                while rest_s > 0 and _state(subject) == state:
                    await asyncio.sleep(min(every_s, rest_s) or rest_s)
                    rest_s -= every_s
                pause_s = await self.run(name, work)

        return self._start(name, forever())

    def once(self, name: str, work: Work, tries: float = math.inf) -> "asyncio.Task[None]":
        """Do this work until it succeeds once, in at most so many tries. The task never raises."""

        async def until_done() -> None:
            n_tries = 0
            while pause_s := await self.run(name, work):
                n_tries += 1
                if n_tries >= tries:
                    return
                await asyncio.sleep(pause_s)

        return self._start(name, until_done())

    def thread(
        self, name: str, body: Callable[[], Any], tries: float = math.inf
    ) -> threading.Thread:
        """Call `body` on a daemon thread until it returns, in at most so many tries."""
        resort = self.last_resort(name)

        def run() -> None:
            n_tries = 0
            while n_tries < tries:
                n_tries += 1
                try:
                    body()
                except BaseException as exc:  # nothing is above it that could see it
                    pause_s = resort.failed(exc)
                else:
                    resort.worked()
                    return
                if n_tries < tries:
                    time.sleep(pause_s)

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def guard_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Count the errors that nothing on this loop has caught; log each kind once a minute."""
        logged_s: dict[tuple[str, str], float] = {}

        def on_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            with contextlib.suppress(Exception):
                self._on_error(EVENT_LOOP)
            error, now = context.get("exception"), self._clock()
            kind = (type(error).__name__, str(context.get("message")))
            if now - logged_s.get(kind, -math.inf) >= LOOP_LOG_EVERY_S:
                logged_s[kind] = now
                fields = {"task": EVENT_LOOP, "what": kind[1]}
                log.error("a background task fails", extra={"fields": fields}, exc_info=error)

        loop.set_exception_handler(on_error)

    def _start(self, name: str, work: Any) -> "asyncio.Task[None]":
        self.last_resort(name)  # so that the gauge shows it from the start
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def end(tasks: Iterable["asyncio.Task[None]"]) -> None:
    """Cancel these tasks, and wait for their end."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _state(subject: Callable[[], Hashable]) -> Hashable:
    try:
        return subject()
    except Exception:  # the work itself will meet the fault and report it
        return None
