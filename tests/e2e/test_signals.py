"""A signal is never lost: whatever a command does when it comes, it ends, with the code it should.

Each case brings the signal at a moment that Python itself reports (an audit event: an import, a
file that is opened, a program that is started), and in a place where Python drops exceptions or
where the main thread runs no bytecode.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.fake_service import fake_service
from tests.support.tiny_job import write_tiny_job

WAIT_S = 300.0
STOPPED = "Stopped.\n"
GOES_ON = "interrupted: the same command goes on from the last checkpoint\n"
IMPORT = ("import", "numpy")

SHIM = """
import ctypes, hashlib, json, os, runpy, signal, sys, threading, weakref
event, word, place, number, command = json.loads(sys.argv[1])

class Thing:
    pass

def finaliser():
    class Noisy:
        def __del__(self):
            os.kill(os.getpid(), number)
    Noisy()

def weak_reference():
    thing = Thing()
    kept = weakref.ref(thing, lambda _: os.kill(os.getpid(), number))
    del thing

def callback_from_c():
    ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), number))()

def catching_everything():
    try:
        os.kill(os.getpid(), number)
    except BaseException:
        pass

def computing_in_c():
    threading.Thread(target=os.kill, args=(os.getpid(), number)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)  # some ten minutes in one call

def bring(seen, arguments):
    global event
    if seen == event and word in str(arguments):
        event = None
        globals()[place]()

sys.argv = command
sys.addaudithook(bring)
runpy.run_module(command[0], run_name="__main__", alter_sys=True)
"""


def interrupted(
    command: str,
    moment: tuple[str, str],
    place: str,
    number: int = signal.SIGINT,
    start: Sequence[str] = (),
) -> tuple[int, str]:
    """Exit code and standard error of `python -m command`, signalled at `moment` in `place`."""
    plan = json.dumps([*moment, place, number, command.split()])
    done = subprocess.run(
        [*start, sys.executable, "-W", "ignore", "-c", SHIM, plan],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("command", "number", "sentence"),
    [
        ("loadtest run --rate 10 --seconds 60 --out {new}", signal.SIGINT, STOPPED),
        ("loadtest run --rate 10 --seconds 60 --out {new}", signal.SIGTERM, STOPPED),
        ("loadtest saturate --out {new}", signal.SIGINT, STOPPED),
        ("loadtest ceiling --out {new}", signal.SIGINT, STOPPED),
        ("models prepare --config gone.toml", signal.SIGINT, GOES_ON),
        ("models prepare debian --out {new}", signal.SIGINT, GOES_ON),
        ("models train --config gone.toml", signal.SIGINT, GOES_ON),
        ("models train --config gone.toml", signal.SIGTERM, GOES_ON),
        ("models export --config gone.toml", signal.SIGINT, GOES_ON),
        ("models index --config gone.toml", signal.SIGINT, GOES_ON),
        ("models release --config gone.toml", signal.SIGINT, GOES_ON),
        ("models all --config gone.toml", signal.SIGINT, GOES_ON),
        ("models evaluate --config gone.toml", signal.SIGINT, GOES_ON),
        ("models compare --config gone.toml", signal.SIGINT, GOES_ON),
        ("models tune --config gone.toml", signal.SIGINT, GOES_ON),
        ("models fold --bundle gone --state gone", signal.SIGINT, GOES_ON),
        ("service.check gone", signal.SIGINT, STOPPED),
        ("service.check gone", signal.SIGTERM, STOPPED),
    ],
)
def test_every_command_ends_with_130_and_one_sentence(
    command: str, number: int, sentence: str, tmp_path: Path
) -> None:
    command = command.format(new=tmp_path / "new")
    assert interrupted(command, IMPORT, "finaliser", number) == (130, sentence)


def test_a_shell_that_ignores_ctrl_c_for_what_runs_in_the_background_changes_nothing() -> None:
    ignored = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]
    done = interrupted("models train --config gone.toml", IMPORT, "finaliser", start=ignored)
    assert done == (130, GOES_ON)


@pytest.mark.parametrize(
    ("moment", "place"),
    [
        (("import", "argparse"), "finaliser"),
        (("import", "argparse"), "weak_reference"),
        (("import", "rich"), "callback_from_c"),
        (("import", "rich"), "catching_everything"),
        (("import", "numpy"), "computing_in_c"),
        (("socket.connect", ""), "catching_everything"),
        (("open", "plan.json"), "finaliser"),
        (("subprocess.Popen", "loadtest.worker"), "finaliser"),
        (("subprocess.Popen", "loadtest.worker"), "computing_in_c"),
    ],
)
def test_no_moment_and_no_place_loses_it(
    moment: tuple[str, str], place: str, tmp_path: Path
) -> None:
    with fake_service() as target:
        command = f"loadtest run --rate 10 --seconds 60 --url {target.url} --out {tmp_path / 'new'}"
        assert interrupted(command, moment, place) == (130, STOPPED)
    assert not (tmp_path / "new" / "result.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_service_that_does_not_serve_yet_ends_with_0(number: int) -> None:
    command = "service --bundle gone --port 0"
    assert interrupted(command, ("import", "uvicorn"), "finaliser", number) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        ("os.rename", "checkpoint"),  # a file is renamed once it is whole
    ],
)
def test_an_interrupted_job_goes_on(moment: tuple[str, str], tmp_path: Path) -> None:
    write_tiny_job(tmp_path)
    job = f"--config {tmp_path / 'tiny.toml'} --var {tmp_path / 'var'}"
    code, said = interrupted(f"models all {job}", moment, "finaliser")
    assert (code, said.endswith(GOES_ON)) == (130, True), said
    again = [sys.executable, "-W", "ignore", "-m", "models", "all", *job.split()]
    done = subprocess.run(again, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    assert not [name for *_, names in os.walk(tmp_path) for name in names if ".tmp" in name]
