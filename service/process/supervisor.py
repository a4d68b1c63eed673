"""Supervisor: one master that forks workers, replaces the dead, and ends them all in good order.

The master computes nothing and has one thread. It opens what workers share before the first fork;
the pages are then theirs too, without a copy. It knows nothing of HTTP: a worker is a function of
its number. Why this and no ready-made process manager: docs/decisions/0018.
"""

import gc
import logging
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

from service.errors import WorkersFailed

log = logging.getLogger(__name__)

PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT)
AWAITED: Final = (*PASSED_ON, signal.SIGCHLD)

FAST_S: Final = 10.0
"""A worker that lives shorter than this died at its start, or might as well have."""

MOST_FAST_DEATHS: Final = 5
FIRST_PAUSE_S: Final = 0.1
LOOK_EVERY_S: Final = 10.0


class Watcher(Protocol):
    """What a supervisor reports."""

    def running(self, pids: list[int]) -> None:
        """These workers run now; called after every change and every few seconds."""
        ...

    def died(self, number: int) -> None:
        """The worker of this number has ended, asked or not."""
        ...

    def replaced(self, number: int) -> None:
        """A worker was started in place of a dead one."""
        ...

    def stopping(self) -> None:
        """No worker will be started any more; called before the workers are told."""
        ...


@dataclass(frozen=True, slots=True)
class Lifeline:
    """A pipe whose writing end only the master holds: its end of file means that the master died.

    A pipe and not Linux' parent-death signal: that one comes when the master's *thread* ends, and
    is lost where the master died before it was asked for.
    """

    reader: int
    writer: int


@dataclass(slots=True)
class _Worker:
    number: int
    started_s: float


class Supervisor:
    """Runs `work(number, lifeline)` in `n_workers` forked processes until a signal."""

    def __init__(
        self,
        n_workers: int,
        work: Callable[[int, int], None],
        watcher: Watcher,
        kill_after_s: float,
    ) -> None:
        """`work` serves until SIGTERM, or until `lifeline` (a file descriptor) can be read.

        A worker that still runs `kill_after_s` after it was told to end is killed.
        """
        self._work = work
        self._watcher = watcher
        self._kill_after_s = kill_after_s
        self._workers: dict[int, _Worker] = {}
        self._due: dict[int, float] = dict.fromkeys(range(n_workers), 0.0)
        self._started_once: set[int] = set()
        self._fast_deaths = 0
        self._stopping_since_s: float | None = None
        self._lifeline = Lifeline(*os.pipe())

    def run(self) -> None:
        """Return once every worker has ended after a signal; raises WorkersFailed."""
        # What lives now is shared: a collection in a worker would write to, and so copy, its pages.
        gc.collect()
        gc.freeze()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
        try:
            while self._due or self._workers:
                self._start_due(before)
                self._watcher.running(list(self._workers))
                self._on_signal(signal.sigtimedwait(AWAITED, self._patience_s()))
                self._reap()
                self._kill_late()
        finally:
            self._pass_on(signal.SIGKILL)  # none is left, but after an error
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(self._lifeline.reader)
            os.close(self._lifeline.writer)
        if self._fast_deaths >= MOST_FAST_DEATHS:
            raise WorkersFailed(
                f"{self._fast_deaths} workers in a row ended within {FAST_S:g} s of their start: "
                "the log lines of the workers say why"
            )

    def _start_due(self, mask: set[int | signal.Signals]) -> None:
        now = time.monotonic()
        for number in [number for number, due_s in self._due.items() if due_s <= now]:
            del self._due[number]
            pid = os.fork()
            if pid == 0:
                self._be_worker(number, mask)
            self._workers[pid] = _Worker(number, now)
            if number in self._started_once:
                self._watcher.replaced(number)
            self._started_once.add(number)

    def _be_worker(self, number: int, mask: set[int | signal.Signals]) -> NoReturn:
        """The child's side of the fork; nothing of the master's stack may run here."""
        code = 1
        try:
            os.close(self._lifeline.writer)
            os.setpgid(0, 0)  # Ctrl-C reaches the master alone, which passes it on once
            for which in PASSED_ON:
                signal.signal(which, lambda *_: os._exit(0))  # until the worker serves
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._work(number, self._lifeline.reader)
            code = 0
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _on_signal(self, info: "signal.struct_siginfo | None") -> None:
        if info is None or info.si_signo == signal.SIGCHLD:
            return
        log.info("signal %d: passed on to the workers", info.si_signo)
        self._stop()

    def _stop(self) -> None:
        """Tell the workers to end, one step further towards the end with each call."""
        if self._stopping_since_s is None:
            self._stopping_since_s = time.monotonic()
            self._watcher.stopping()
        self._due.clear()
        self._pass_on(signal.SIGTERM)

    def _pass_on(self, which: signal.Signals) -> None:
        for pid in self._workers:
            os.kill(pid, which)  # not yet waited for, so the id is still theirs

    def _reap(self) -> None:
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            worker = self._workers.pop(pid, None)
            if worker is not None:
                self._watcher.died(worker.number)
                if self._stopping_since_s is None:
                    self._replace(worker, pid, os.waitstatus_to_exitcode(status))

    def _replace(self, worker: _Worker, pid: int, code: int) -> None:
        now = time.monotonic()
        lived_s = now - worker.started_s
        self._fast_deaths = self._fast_deaths + 1 if lived_s < FAST_S else 0
        how = {"exit_code": code} if code >= 0 else {"signal": -code}
        fields = {"number": worker.number, "pid": pid, "lived_s": round(lived_s, 3), **how}
        log.warning("a worker has died", extra={"fields": fields})
        if self._fast_deaths >= MOST_FAST_DEATHS:
            self._stop()
            return
        # The first death may be an accident; after that, whatever kills them gets time to pass.
        pause_s = FIRST_PAUSE_S * (2**self._fast_deaths - 1)
        self._due[worker.number] = now + pause_s

    def _kill_late(self) -> None:
        since_s = self._stopping_since_s
        if since_s is not None and time.monotonic() - since_s > self._kill_after_s:
            log.error("%d workers did not end in time: killed", len(self._workers))
            self._pass_on(signal.SIGKILL)
            self._kill_after_s = math.inf

    def _patience_s(self) -> float:
        """How long to sleep where no signal comes."""
        now, moments = time.monotonic(), list(self._due.values())
        if self._stopping_since_s is not None:
            moments.append(self._stopping_since_s + self._kill_after_s)
        return min([LOOK_EVERY_S, *(max(0.01, moment - now) for moment in moments)])
