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

SAFETY_S = 30.0

SCRIPT = """
import os, select, signal, sys
from service.process import supervisor
from service.errors import WorkersFailed

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # whole, whoever else writes

class Watcher:
    def running(self, pids): say("running", *pids)
    def died(self, number): say("died", number)
    def replaced(self, number): say("replaced", number)
    def stopping(self): say("stopping")

def bell():
    # Readable after a signal: one that comes just before a wait would not end the wait itself.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    return reader

def serve(number, lifeline):
    told = bell()
    say("up", number)
    select.select([lifeline, told], [], [])
    say("orphan", number)

def stubborn(number, lifeline):
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

def deaf(number, lifeline):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say("up", number)
    while True:
        signal.pause()

def broken(number, lifeline):
    raise ValueError("cannot serve")

n, work, kill_after_s = int(sys.argv[1]), globals()[sys.argv[2]], float(sys.argv[3])
supervisor.FIRST_PAUSE_S = 0.001
try:
    supervisor.Supervisor(n, work, Watcher(), kill_after_s).run()
except WorkersFailed as exc:
    say("failed", exc.detail)
    sys.exit(1)
say("ended")
"""


@contextmanager
def supervised(n: int, work: str, kill_after_s: float = 60.0) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(n), work, str(kill_after_s)],
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
    raise AssertionError(f"{missing} never said: {lines}")


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


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
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
