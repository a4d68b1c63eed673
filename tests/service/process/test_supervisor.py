"""The supervisor with toy workers, in a process of its own: forking under pytest helps nobody."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.faults import frozen

SAFETY_S = 240.0

SCRIPT = """
import errno, os, select, signal, sys, time
from service.process import supervisor
from service.errors import WorkersFailed

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # whole, whoever else writes

class Watcher:
    def on_running(self, pids): say("running", *pids)
    def on_died(self, number): say("died", number)
    def on_replaced(self, number): say("replaced", number)
    def on_silent(self, number): say("silent", number)
    def on_stopping(self): say("stopping")

def bell():
    # Readable after a signal: one that comes just before a wait would not end the wait itself.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    return reader

def serve(number, lifeline, beat):
    told = bell()
    say("up", number)
    select.select([lifeline, told], [], [])
    say("orphan", number)

def stubborn(number, lifeline, beat):
    seen = []
    def note(*_):
        seen.append(1)
        say("told", len(seen))
        if len(seen) == 2:
            sys.exit(0)
    signal.signal(signal.SIGTERM, note)
    told = bell()
    say("up", number)
    while True:
        os.read(told, 1)

def deaf(number, lifeline, beat):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say("up", number)
    while True:
        signal.pause()

def broken(number, lifeline, beat):
    raise ValueError("cannot serve")

def beating(number, lifeline, beat):
    told = bell()
    beat()
    say("up", number, os.getpid())
    while not select.select([lifeline, told], [], [], 0.02)[0]:
        beat()

class Shared:
    # Due once for every line that the test writes.
    def due(self): return bool(select.select([0], [], [], 0)[0]) and bool(os.read(0, 1))
    def ended(self, succeeded): say("renewed" if succeeded else "given up")

def dying_at_first(number, lifeline, beat):
    # The second generation's numbers are 2 and 3; the third one has 0 and 1 again.
    if number == 3:
        say("up", number)
        return
    beating(number, lifeline, beat)

def lingering(number, lifeline, beat):
    # Says that it was told to end, and then ends when the test kills it.
    signal.signal(signal.SIGTERM, lambda *_: say("told", number, os.getpid()))
    beat()
    say("up", number, os.getpid())
    while not select.select([lifeline], [], [], 0.02)[0]:
        beat()

def mute(number, lifeline, beat):
    # A new one does not get so far as to serve.
    if number < 2:
        beat()
    told = bell()
    say("up", number, os.getpid())
    select.select([lifeline, told], [], [])

class Broken(Watcher):
    def __getattribute__(self, name):
        raise RuntimeError("a bug")

def no_forks(fork=os.fork, left=[3]):
    left[0] -= 1
    if left[0] >= 0:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
    return fork()

def two_forks(fork=os.fork, left=[2]):
    left[0] -= 1
    if left[0] < 0:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
    return fork()

n, work, kill_after_s = int(sys.argv[1]), globals()[sys.argv[2]], float(sys.argv[3])
silence_s, extra = float(sys.argv[4]), sys.argv[5]
supervisor.FIRST_PAUSE_S = 0.001
supervisor.LOOK_S = 0.02
supervisor.FAST_S = 0.0 if silence_s < 60 else 10.0
if extra == "quick reports":
    supervisor.REPORT_EVERY_S = 0.02
if extra == "no forks":
    os.fork = no_forks
if extra == "two forks":
    os.fork = two_forks
counted = []
background = supervisor.Background(counted.append)
watcher = Broken() if extra == "broken watcher" else Watcher()
shared = Shared() if extra == "renewals" else None
try:
    supervisor.Supervisor(n, work, watcher, kill_after_s, silence_s, background, shared).run()
except WorkersFailed as exc:
    say("failed", exc.detail)
    sys.exit(1)
say("ended")
say("counted", *sorted(set(counted)))
"""


@contextmanager
def supervised(
    n: int, work: str, kill_after_s: float = 60.0, silence_s: float = 600.0, extra: str = ""
) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(n), work, str(kill_after_s), str(silence_s), extra],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    safety = threading.Timer(SAFETY_S, process.kill)
    safety.start()
    try:
        yield process
    finally:
        safety.cancel()
        process.kill()
        process.communicate(timeout=SAFETY_S)


def read_until(process: "subprocess.Popen[str]", *wanted: str) -> list[str]:
    """Lines up to the one that completes what is wanted, which may come in any order."""
    assert process.stdout is not None
    lines, missing = [], list(wanted)
    for line in process.stdout:
        lines.append(line.strip())
        if lines[-1] in missing:
            missing.remove(lines[-1])
        if not missing:
            return lines
    _, errors = process.communicate(timeout=SAFETY_S)
    raise AssertionError(f"{missing} never said: {lines}, exit {process.returncode}: {errors}")


def renew(process: "subprocess.Popen[str]") -> None:
    """Make one more renewal due."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def pids_of_two(master: "subprocess.Popen[str]") -> dict[str, int]:
    """The process ids of two workers by their numbers, once both are up."""
    return pids_said(master, "up")


def pids_said(master: "subprocess.Popen[str]", word: str) -> dict[str, int]:
    """The process ids of two workers by their numbers, once both have said this word."""
    pids: dict[str, int] = {}
    assert master.stdout is not None
    while len(pids) < 2:
        words = master.stdout.readline().split()
        pids |= {words[1]: int(words[2])} if words[0] == word else {}
    return pids


def children(process: "subprocess.Popen[str]") -> set[str]:
    return set(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())


def test_killed_worker_is_replaced_and_the_others_are_left_alone() -> None:
    with supervised(3, "serve") as master:
        read_until(master, "up 0", "up 1", "up 2")
        before = children(master)
        killed = min(before, key=int)
        os.kill(int(killed), signal.SIGKILL)
        lines = read_until(master, "died 0", "replaced 0", "up 0")
        assert before - children(master) == {killed}
        assert len(children(master)) == 3
        assert not {"died 1", "died 2"} & set(lines)


ENDING = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    *(signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
)


@pytest.mark.parametrize("which", ENDING)
def test_signal_to_the_master_ends_all_workers_and_none_is_replaced(which: signal.Signals) -> None:
    with supervised(2, "serve") as master:
        read_until(master, "up 0", "up 1")
        master.send_signal(which)
        lines = read_until(master, "ended")
        assert master.wait(SAFETY_S) == 0
    assert {"stopping", "died 0", "died 1"} <= set(lines)
    assert not [line for line in lines if line.startswith("replaced")]


def test_second_signal_is_passed_on() -> None:
    with supervised(1, "stubborn") as master:
        read_until(master, "up 0")
        master.send_signal(signal.SIGTERM)
        read_until(master, "told 1")
        master.send_signal(signal.SIGTERM)
        assert "told 2" in read_until(master, "ended")
        assert master.wait(SAFETY_S) == 0


def test_worker_that_will_not_end_is_killed() -> None:
    with supervised(1, "deaf", kill_after_s=0.05) as master:
        read_until(master, "up 0")
        master.send_signal(signal.SIGTERM)
        read_until(master, "died 0", "ended")
        assert master.wait(SAFETY_S) == 0


def test_workers_that_die_at_their_start_end_the_service_with_a_sentence() -> None:
    with supervised(2, "broken") as master:
        out, err = master.communicate(timeout=SAFETY_S)
    assert master.returncode == 1
    assert "failed 5 workers in a row ended within 10 s of their start" in out
    assert "ValueError: cannot serve" in err


def test_workers_notice_that_their_master_was_killed() -> None:
    with supervised(2, "serve") as master:
        read_until(master, "up 0", "up 1")
        master.send_signal(signal.SIGKILL)
        read_until(master, "orphan 0", "orphan 1")


def test_a_frozen_worker_is_replaced_and_the_others_are_left_alone() -> None:
    with supervised(2, "beating", silence_s=15.0) as master:
        with frozen(pids_of_two(master)["0"]):
            lines = read_until(master, "silent 0", "died 0", "replaced 0")
        assert not {"silent 1", "died 1"} & set(lines)
        master.send_signal(signal.SIGTERM)
        assert master.wait(SAFETY_S) == 0


def test_a_stop_of_the_master_ends_nothing() -> None:
    with supervised(2, "beating", extra="quick reports") as master:
        pids = pids_of_two(master)
        for _ in range(5):
            with frozen(master.pid):
                threading.Event().wait(0.2)  # longer than the master waits for a signal
        os.kill(pids["0"], signal.SIGKILL)
        assert "stopping" not in read_until(master, "replaced 0")


FAULTS_OF_THE_MASTER = {"broken watcher": "watch-workers", "no forks": "supervise"}


@pytest.mark.parametrize("fault", FAULTS_OF_THE_MASTER)
def test_no_error_of_the_master_ends_its_workers(fault: str) -> None:
    with supervised(2, "beating", extra=fault) as master:
        assert master.stdout is not None
        while len(children(master)) < 2:
            assert master.poll() is None
        for line in master.stdout:
            if line.startswith("up 1"):
                break
        master.send_signal(signal.SIGTERM)
        assert "ended" in read_until(master, f"counted {FAULTS_OF_THE_MASTER[fault]}")
        assert master.wait(SAFETY_S) == 0


def test_a_master_that_can_start_no_process_still_says_what_runs() -> None:
    with supervised(2, "beating", extra="two forks") as master:
        pids = pids_of_two(master)
        os.kill(pids["0"], signal.SIGKILL)
        read_until(master, "died 0", f"running {pids['1']}")
        read_until(master, f"running {pids['1']}")  # again, after a start has failed
        master.send_signal(signal.SIGTERM)
        read_until(master, "counted supervise")


def test_a_hang_up_that_nohup_keeps_away_stays_away() -> None:
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a child inherits it
    try:
        with supervised(1, "beating") as master:
            assert master.stdout is not None
            for line in master.stdout:
                if line.startswith("up"):
                    break
            master.send_signal(signal.SIGHUP)
            threading.Event().wait(0.2)  # a signal that does nothing cannot be waited for
            assert master.poll() is None
            assert len(children(master)) == 1
    finally:
        signal.signal(signal.SIGHUP, ignored)


def test_a_renewal_replaces_all_workers_and_is_no_restart() -> None:
    with supervised(2, "beating", extra="renewals") as master:
        old = children_once_up(master)
        for _ in range(2):
            renew(master)
            lines = read_until(master, "renewed")
            assert not old & children(master)
            assert len(children(master)) == 2
            assert not [line for line in lines if line.startswith("replaced")]
            old = children(master)
        master.send_signal(signal.SIGTERM)
        read_until(master, "ended", "counted")
        assert master.wait(SAFETY_S) == 0


def children_once_up(master: "subprocess.Popen[str]") -> set[str]:
    return {str(pid) for pid in pids_of_two(master).values()}


def test_a_new_worker_that_dies_before_all_serve_leaves_the_old_ones() -> None:
    with supervised(2, "dying_at_first", extra="renewals") as master:
        old = children_once_up(master)
        renew(master)
        lines = read_until(master, "given up")
        assert children(master) == old
        assert not {"died 0", "died 1", "replaced 2", "replaced 3"} & set(lines)


def test_an_old_worker_that_dies_meanwhile_is_replaced_only_while_it_is_needed() -> None:
    with supervised(2, "lingering", extra="renewals") as master:
        old = pids_of_two(master)
        renew(master)
        pids_of_two(master)
        told = pids_said(master, "told")
        assert told == old
        os.kill(old["0"], signal.SIGKILL)
        read_until(master, "died 0")
        os.kill(old["1"], signal.SIGKILL)
        lines = read_until(master, "renewed")
        assert not {"replaced 0", "replaced 1"} & set(lines)
        assert len(children(master)) == 2


def test_a_worker_that_dies_before_the_new_ones_serve_is_replaced() -> None:
    with supervised(2, "mute", extra="renewals") as master:
        old = pids_of_two(master)
        renew(master)
        pids_of_two(master)
        os.kill(old["0"], signal.SIGKILL)
        read_until(master, "died 0", "replaced 0")


def test_old_workers_that_will_not_end_are_killed() -> None:
    with supervised(2, "lingering", kill_after_s=0.05, extra="renewals") as master:
        old = children_once_up(master)
        renew(master)
        read_until(master, "died 0", "died 1", "renewed")
        assert not old & children(master)


STAGES = {
    "the new ones do not serve yet": ("mute", "up"),
    "the old ones end": ("lingering", "told"),
}


@pytest.mark.parametrize(("work", "word"), STAGES.values(), ids=STAGES)
def test_a_signal_amid_a_renewal_ends_old_and_new_workers(work: str, word: str) -> None:
    with supervised(2, work, kill_after_s=2.0, extra="renewals") as master:
        pids_of_two(master)
        renew(master)
        pids_said(master, word)
        master.send_signal(signal.SIGTERM)
        lines = read_until(master, "died 0", "died 1", "died 2", "died 3", "ended")
        assert not [line for line in lines if line.startswith("replaced")]
        assert master.wait(SAFETY_S) == 0


def test_a_second_renewal_waits_for_the_end_of_the_first() -> None:
    with supervised(2, "lingering", extra="renewals") as master:
        old = pids_of_two(master)
        renew(master)
        pids_said(master, "told")
        renew(master)
        threading.Event().wait(0.2)  # what does not begin cannot be waited for
        assert len(children(master)) == 4
        for pid in old.values():
            os.kill(pid, signal.SIGKILL)
        lines = read_until(master, "renewed")
        assert not [line for line in lines if line.startswith("up")]
        assert set(pids_of_two(master)) == {"0", "1"}
