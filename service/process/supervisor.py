"""Supervisor: a master that forks workers, replaces dead or silent ones, and ends all on a signal.

The master has one thread and answers no requests. Its caller loads what the workers share before
the first fork; the workers then share those memory pages without a copy. Where what they share is
loaded anew, the supervisor renews them: it forks as many beside the old ones, and ends those once
all new ones serve. This module knows nothing of HTTP: a worker runs a function that gets its
number. Decision 0018 says why no ready-made process manager serves here, and 0027 why workers are
renewed.
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

from service.background import Background
from service.errors import WorkersFailed
from service.memory import give_back_memory
from service.process.heartbeats import Heartbeats
from service.signals import ending_signals

log = logging.getLogger(__name__)

FAST_S: Final = 10.0
"""A worker that lives shorter than this counts as one that failed at its start. A choice: it should
be longer than opening a bundle takes."""

MAX_FAST_DEATHS: Final = 5
"""After this many fast deaths in a row the service ends, because restarts do not seem to help. A
choice: where one worker keeps dying, the pauses up to then add up to 2.6 seconds."""

FIRST_PAUSE_S: Final = 0.1
"""Wait before the restart that follows the first fast death. The next waits are 0.3, 0.7 and 1.5 s.
A choice: a lone accident costs little service, and a lasting fault does not cause a storm of forks.
"""

REPORT_EVERY_S: Final = 10.0
"""How often the watcher hears which workers run where no signal comes. A choice: their memory and
CPU time in the metrics are up to this old."""


LOOK_S: Final = 0.25
"""How often the supervisor asks whether a renewal is due, and how far one has come. A choice: as
often as a worker looks for changes (`service.serving.follow`)."""


class Watcher(Protocol):
    """Hears from a supervisor what happens to its workers."""

    def on_running(self, pids: list[int]) -> None:
        """The workers with these process ids run now.

        Called after every change and every few seconds.
        """
        ...

    def on_died(self, number: int) -> None:
        """The worker of this number has ended, whether it was told to or not."""
        ...

    def on_replaced(self, number: int) -> None:
        """The supervisor has started a worker in place of the dead one of this number."""
        ...

    def on_silent(self, number: int) -> None:
        """The supervisor kills the worker of this number, which no longer answers."""
        ...

    def on_stopping(self) -> None:
        """The supervisor will start no more workers. Called before it tells them to end."""
        ...


class Shared(Protocol):
    """What the workers have from before their fork, and may have to be forked anew for."""

    def due(self) -> bool:
        """Whether new workers would share something else. It may load that first, and block."""
        ...

    def ended(self, succeeded: bool) -> None:
        """A renewal has ended: all workers are new, or all are old ones because a new one died."""
        ...


@dataclass(frozen=True, slots=True)
class Lifeline:
    """A pipe that tells workers of their master's death.

    `reader` and `writer` are file descriptors.

    Only the master holds the writing end, so a worker reads the end of the file once the master is
    dead. Linux' parent-death signal would not do: it comes when the master's *thread* ends, and a
    worker misses it if its master died before the worker asked for it.
    """

    reader: int
    writer: int


@dataclass(slots=True)
class _Worker:
    number: int
    started_s: float
    killed: bool = False


@dataclass(slots=True)
class _Renewal:
    """Numbers of the workers that shall be replaced, and of those that replace them.

    `leaving` is one of the two sets once its workers were told to end, and empty before.
    """

    old: frozenset[int]
    new: frozenset[int]
    leaving: frozenset[int] = frozenset()
    leaving_since_s: float = math.inf


class Supervisor:
    """Runs `work(number, lifeline, beat)` in `n_workers` forked processes until a signal."""

    def __init__(
        self,
        n_workers: int,
        work: Callable[[int, int, Callable[[], None]], None],
        watcher: Watcher,
        kill_after_s: float,
        silence_s: float = math.inf,
        background: Background | None = None,
        shared: Shared | None = None,
    ) -> None:
        """`work` must return on SIGTERM, and once `lifeline` (a file descriptor) can be read.

        The supervisor kills a worker that still runs `kill_after_s` seconds after the first signal,
        and replaces one that has not called `beat` for `silence_s` seconds. Errors of the
        supervisor's own go to `background`. Workers are renewed whenever `shared` says so, and have
        numbers below twice `n_workers` then.
        """
        self._work = work
        self._watcher = watcher
        self._kill_after_s = kill_after_s
        self._silence_s = silence_s
        self._shared = shared
        self._numbers = range(n_workers if shared is None else 2 * n_workers)
        self._heartbeats = Heartbeats(len(self._numbers), silence_s)
        background = background or Background()
        self._resort = background.last_resort("supervise")
        self._watching = background.last_resort("watch-workers")
        self._ending = ending_signals()
        self._awaited = (*self._ending, signal.SIGCHLD)
        self._looked_s = math.inf  # when the master last looked for silent workers
        self._report_at_s = 0.0
        self._pause_s = 0.0
        self._workers: dict[int, _Worker] = {}
        self._start_at_s: dict[int, float] = dict.fromkeys(range(n_workers), 0.0)
        self._died: set[int] = set()  # numbers of dead workers whose replacement is not started yet
        self._renewal: _Renewal | None = None
        self._look_at_s = 0.0
        self._fast_deaths = 0
        self._stopping_since_s: float | None = None
        self._lifeline = Lifeline(*os.pipe())

    def run(self) -> None:
        """Fork the workers, and return once all have ended after a signal.

        Raises WorkersFailed after `MAX_FAST_DEATHS` fast deaths in a row.
        """
        _prepare_to_fork()
        old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._awaited)
        try:
            while self._start_at_s or self._workers:
                try:
                    self._turn(old_mask)
                except Exception as exc:  # no error of the master may end the workers
                    self._pause_s = self._resort.failed(exc)
                    self._report_at_s = 0.0  # the failure shows in the metrics after the pause
                else:
                    self._pause_s = 0.0
                    self._resort.worked()
        finally:
            self._send_to_all(signal.SIGKILL)  # after an error some workers still run
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
            os.close(self._lifeline.reader)
            os.close(self._lifeline.writer)
        if self._fast_deaths >= MAX_FAST_DEATHS:
            raise WorkersFailed(
                f"{self._fast_deaths} workers in a row ended within {FAST_S:g} s of their start: "
                "see their log lines for the cause"
            )

    def _turn(self, mask: set[int | signal.Signals]) -> None:
        wait_s = self._pause_s or self._sleep_s()
        self._on_signal(signal.sigtimedwait(self._awaited, wait_s))
        self._reap()
        self._kill_late()
        now = time.monotonic()
        self._heartbeats.on_wake(now, self._looked_s + wait_s)
        self._kill_silent(now)
        self._looked_s = now
        if now >= self._report_at_s:
            self._report_at_s = now + REPORT_EVERY_S
            self._tell(lambda: self._watcher.on_running(list(self._workers)))
        if self._shared is not None and self._stopping_since_s is None and now >= self._look_at_s:
            self._renew(self._shared)
            self._look_at_s = time.monotonic() + LOOK_S
        self._start_due(mask)  # at last: where no process can be started, the rest is done

    def _tell(self, what: Callable[[], None]) -> None:
        """Tell the watcher; its errors must not keep the supervisor from its work."""
        try:
            what()
        except Exception as exc:
            self._watching.failed(exc)
        else:
            self._watching.worked()

    def _start_due(self, mask: set[int | signal.Signals]) -> None:
        now = time.monotonic()
        for number in [number for number, due_s in self._start_at_s.items() if due_s <= now]:
            self._heartbeats.start(number, now)
            pid = os.fork()  # where it raises, the number stays due
            if pid == 0:
                self._be_worker(number, mask)
            del self._start_at_s[number]
            self._workers[pid] = _Worker(number, now)
            self._report_at_s = now
            if number in self._died:
                self._died.remove(number)
                self._tell(lambda number=number: self._watcher.on_replaced(number))  # type: ignore[misc]

    def _renew(self, shared: Shared) -> None:
        """Begin a renewal if one is due, or take its next step if that can be taken."""
        renewal = self._renewal
        if renewal is None:
            if shared.due():
                self._begin_renewal()
        elif renewal.leaving:
            if not self._running(renewal.leaving):
                self._renewal = None
                shared.ended(succeeded=renewal.leaving == renewal.old)
        elif all(self._heartbeats.has_told(number) for number in renewal.new):
            log.info("all new workers serve: the old ones end")
            self._let_go(renewal, renewal.old)

    def _begin_renewal(self) -> None:
        old = {worker.number for worker in self._workers.values()} | self._start_at_s.keys()
        free = [number for number in self._numbers if number not in old]
        self._renewal = _Renewal(frozenset(old), frozenset(free[: len(old)]))
        log.info("new workers start beside the old ones")
        _prepare_to_fork()
        now = time.monotonic()
        for number in self._renewal.new:
            self._heartbeats.start(number, now)  # so that its predecessor's beats do not count
            self._start_at_s[number] = now

    def _let_go(self, renewal: _Renewal, leaving: frozenset[int]) -> None:
        """Tell the old workers to end, or the new ones where they cannot take over.

        Either may be answering requests, so none is killed.
        """
        renewal.leaving, renewal.leaving_since_s = leaving, time.monotonic()
        self._died -= leaving
        for number in leaving:
            self._start_at_s.pop(number, None)
        for pid in self._running(leaving):
            os.kill(pid, signal.SIGTERM)

    def _running(self, numbers: frozenset[int]) -> list[int]:
        return [pid for pid, worker in self._workers.items() if worker.number in numbers]

    def _be_worker(self, number: int, mask: set[int | signal.Signals]) -> NoReturn:
        """Run the work in the child, then exit. It must not return into the master's code."""
        code = 1
        try:
            os.close(self._lifeline.writer)
            os.setpgid(0, 0)  # Ctrl-C then reaches only the master, which forwards it once
            for which in ending_signals():
                signal.signal(which, lambda *_: os._exit(0))  # until `work` sets its own handlers
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._work(number, self._lifeline.reader, lambda: self._heartbeats.beat(number))
            code = 0
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _on_signal(self, info: "signal.struct_siginfo | None") -> None:
        # After a stop of the process that outlasts the wait, CPython hands out a struct that nobody
        # filled in (`signal.sigtimedwait` breaks off its loop after EINTR).
        if info is None or info.si_signo not in self._ending:
            return
        log.info("signal %d: passed on to the workers", info.si_signo)
        self._stop()

    def _stop(self) -> None:
        """Send SIGTERM to the workers; `DrainingServer.on_signal` says what each one does."""
        told: frozenset[int] = frozenset()
        if self._stopping_since_s is None:
            self._stopping_since_s = time.monotonic()
            self._tell(lambda: self._watcher.on_stopping())
            # Those that leave have their first signal, and a second one means more.
            told = self._renewal.leaving if self._renewal else told
        self._start_at_s.clear()
        self._send_to_all(signal.SIGTERM, but=told)

    def _send_to_all(self, which: signal.Signals, but: frozenset[int] = frozenset()) -> None:
        for pid, worker in self._workers.items():
            if worker.number not in but:
                os.kill(pid, which)  # not reaped yet, so no other process can have this id

    def _reap(self) -> None:
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            worker = self._workers.pop(pid, None)
            if worker is not None:
                self._report_at_s = 0.0
                self._tell(lambda number=worker.number: self._watcher.on_died(number))  # type: ignore[misc]
                renewal = self._renewal
                if self._stopping_since_s is None and not (
                    renewal is not None and worker.number in renewal.leaving
                ):
                    self._on_death(worker, pid, os.waitstatus_to_exitcode(status))

    def _on_death(self, worker: _Worker, pid: int, code: int) -> None:
        """Replace a worker that nobody told to end; where it was to take over, give that up."""
        now = time.monotonic()
        lived_s = now - worker.started_s
        how = {"exit_code": code} if code >= 0 else {"signal": -code}
        fields = {"number": worker.number, "pid": pid, "lived_s": round(lived_s, 3), **how}
        log.warning("a worker has died", extra={"fields": fields})
        renewal = self._renewal
        if renewal is not None and not renewal.leaving and worker.number in renewal.new:
            self._let_go(renewal, renewal.new)
            return
        self._fast_deaths = self._fast_deaths + 1 if lived_s < FAST_S else 0
        if self._fast_deaths >= MAX_FAST_DEATHS:
            self._stop()
            return
        # A worker that lived long is replaced at once. After each fast death in a row the pause
        # about doubles, so that a passing fault can pass.
        pause_s = FIRST_PAUSE_S * (2**self._fast_deaths - 1)
        self._start_at_s[worker.number] = now + pause_s
        self._died.add(worker.number)

    def _kill_late(self) -> None:
        if (renewal := self._renewal) and (
            time.monotonic() - renewal.leaving_since_s > self._kill_after_s
        ):
            renewal.leaving_since_s = math.inf
            late = self._running(renewal.leaving)
            log.error("%d workers did not leave in time: killed", len(late))
            for pid in late:
                os.kill(pid, signal.SIGKILL)
        since_s = self._stopping_since_s
        if since_s is not None and time.monotonic() - since_s > self._kill_after_s:
            log.error("%d workers did not end in time: killed", len(self._workers))
            self._send_to_all(signal.SIGKILL)
            self._kill_after_s = math.inf

    def _kill_silent(self, now: float) -> None:
        for pid, worker in self._workers.items():
            if worker.killed or now < self._heartbeats.silent_at_s(worker.number):
                continue
            worker.killed = True
            fields = {"number": worker.number, "pid": pid, "silence_s": self._silence_s}
            log.error("a worker does not answer: killed", extra={"fields": fields})
            os.kill(pid, signal.SIGKILL)
            self._tell(lambda number=worker.number: self._watcher.on_silent(number))  # type: ignore[misc]

    def _sleep_s(self) -> float:
        """Seconds until the next thing to do where no signal comes."""
        now, moments_s = time.monotonic(), list(self._start_at_s.values())
        moments_s += [
            self._heartbeats.silent_at_s(worker.number)
            for worker in self._workers.values()
            if not worker.killed
        ]
        moments_s.append(self._report_at_s)
        if self._shared is not None and self._stopping_since_s is None:
            moments_s.append(self._look_at_s)
        if self._stopping_since_s is not None:
            moments_s.append(self._stopping_since_s + self._kill_after_s)
        return min([REPORT_EVERY_S, *(max(0.0, moment_s - now) for moment_s in moments_s)])


def _prepare_to_fork() -> None:
    """Let go of what nobody uses any more, and keep the garbage collector off the rest.

    A collection in a worker would write to all objects, and so copy shared pages. Frozen objects
    are left out of it.
    """
    gc.unfreeze()
    give_back_memory()
    gc.freeze()
