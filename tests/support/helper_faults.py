"""The faults of the bench `tests.bench.faults`: whom each befalls, how it shows, and what heals.

A helper is what works beside the requests (docs/operations.md, Background tasks), or what reads or
writes a file when a request of an admin asks for it.
"""

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from service.bundle.manifest import POINTER
from service.edge.descriptors import LOG_EVERY_S
from service.serving.desired import FILE as CHOICE_FILE
from tests.support import machine
from tests.support.bundle_root import bundle_id
from tests.support.faults import frozen
from tests.support.observed import Observed, wait_until

SILENCE_S: Final = 3.0
GARBAGE: Final = b"\x00garbage{"
HEALED_S: Final = 45.0
"""Every helper works again this long after its fault: the longest pause of a background task is
30 s (`service.background.LONGEST_PAUSE_S`)."""


class Collector:
    """A collector of traces that counts what it gets; it can be made to refuse or stand still."""

    def __init__(self) -> None:
        outer = self
        self.n_batches = 0
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.status = 200

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                outer.goes_on.wait()
                outer.n_batches += outer.status == 200
                with suppress(OSError):
                    self.send_response(outer.status)
                    self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @contextmanager
    def standing(self) -> Iterator[None]:
        """It takes batches and does not answer."""
        self.goes_on.clear()
        try:
            yield
        finally:
            self.goes_on.set()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """It answers every batch with an error."""
        self.status = 400
        try:
            yield
        finally:
            self.status = 200


@dataclass
class Stage:
    """What a fault needs to know: the service, its files, and what was asked of it so far."""

    service: Observed
    root: Path
    state: Path
    rules: Path
    keys: Path
    collector: Collector
    group: Path
    scratch: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)
    turns: dict[str, int] = field(default_factory=dict)

    def next_of(self, *names: str) -> str:
        """The bundle of these whose turn it is: never the one of the last call."""
        turn = self.turns[names[0]] = self.turns.get(names[0], 0) + 1
        return names[turn % len(names)]

    def activate(self) -> int:
        """Ask for another bundle; the status."""
        body = {"bundle": self.next_of("a", "b")}
        return self.service.ask("POST", "/admin/bundles/activate", body)[0]

    def add_label(self, timeout_ms: int = 10_000) -> str | None:
        """Add a label; its id, or None where that was refused."""
        name = f"new-{next(self.numbers)}"
        body = {"labels": [{"id": name, "text": "a white whale"}]}
        status, _ = self.service.ask("POST", "/v1/labels", body, timeout_ms)
        return name if status == 200 else None

    def serves(self, name: str) -> bool:
        """Whether all workers serve the bundle of this name."""
        wanted = bundle_id(self.root / name)
        return self.service.everywhere("/v1/info", lambda it: it[1].get("bundle_id") == wanted)


@dataclass(frozen=True)
class Sign:
    """What shows a fault: a log entry with these members, and a metric that counts it.

    `task` is the background task whose gauge says that it fails. The service may have logged the
    entry `again_s` seconds before, and then does not do it again.
    """

    entry: dict[str, object]
    metric: str
    labels: dict[str, str] = field(default_factory=dict)
    task: str = ""
    again_s: float = 0.0


Befall = Callable[[Stage], AbstractContextManager[None]]


@dataclass(frozen=True, eq=False)
class Case:
    """One helper, one fault, what shows it (None: nothing has to), and the proof of healing.

    `provoke` has the helper meet the fault. `breaks` says that requests to one worker may break
    or be late, as docs/operations.md has it. `mounts` says that the fault needs a mount, `groups`
    that it needs a control group.
    """

    helper: str
    fault: str
    befall: Befall
    heal: Callable[[Stage], bool]
    sign: Sign | None = None
    provoke: Callable[[Stage], object] = lambda stage: None
    breaks: bool = False
    mounts: bool = False
    groups: bool = False
    hold_s: float = 0.0


# What heals: the effect of the helper's work is seen in every worker.


def choice_followed(stage: Stage) -> bool:
    name = stage.next_of("a", "b")
    status, _ = stage.service.ask("POST", "/admin/bundles/activate", {"bundle": name})
    return status == 200 and wait_until(lambda: stage.serves(name), 20.0) is not None


def label_followed(stage: Stage) -> bool:
    name = stage.add_label()
    if name is None:
        return False
    path = f"/v1/labels/{name}"
    seen = wait_until(lambda: stage.service.everywhere(path, lambda it: it[0] == 200), 20.0)
    return seen is not None


def taken_by_all(stage: Stage) -> bool:
    return all([stage.add_label() for _ in range(10)]) and label_followed(stage)


def move_pointer(stage: Stage) -> None:
    scratch = stage.root / ".pointer"
    scratch.write_text(stage.next_of("p", "q"))
    scratch.replace(stage.root / POINTER)


def caught_up(stage: Stage) -> bool:
    name = (stage.root / POINTER).read_text()
    return wait_until(lambda: stage.serves(name), HEALED_S) is not None


def pointer_followed(stage: Stage) -> bool:
    move_pointer(stage)
    return caught_up(stage)


def two_workers(stage: Stage) -> bool:
    return wait_until(lambda: stage.service.metric("astrolabe_workers") == 2, 20.0) is not None


def traces_arrive(stage: Stage) -> bool:
    before = stage.collector.n_batches
    return wait_until(lambda: stage.collector.n_batches > before, 20.0) is not None


def add_several(stage: Stage) -> None:
    """One change more than there are workers, so that one waits behind another."""
    threads = [threading.Thread(target=stage.add_label, args=(500,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def write_and_swap(stage: Stage) -> None:
    """Change bundles while a change of labels waits in each worker."""
    thread = threading.Thread(target=add_several, args=(stage,))
    thread.start()
    stage.activate()
    thread.join()


def database(stage: Stage) -> Path:
    return stage.state / "tiny.sqlite"


# What befalls.


@contextmanager
def lost_descriptors(stage: Stage) -> Iterator[None]:
    with machine.no_descriptor(stage.service.workers[0]):
        yield


@contextmanager
def start_read_only(stage: Stage) -> Iterator[None]:
    began_s = time.monotonic()
    victim = stage.service.old_worker()
    with machine.read_only(stage.state):
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: stage.service.logged(began_s, message="serving"), 20.0)
        yield


@contextmanager
def no_fork(stage: Stage) -> Iterator[None]:
    victim = stage.service.old_worker()
    try:
        with machine.no_new_process(stage.service.master, stage.group):
            os.kill(victim, signal.SIGKILL)
            yield
    finally:
        machine.leave(stage.group)


@contextmanager
def nonsense_of_a_worker(stage: Stage) -> Iterator[None]:
    victim = stage.service.old_worker()  # its death has the master read the other's figures at once
    with machine.unreadable_figures(stage.service.workers[1], stage.scratch):
        os.kill(victim, signal.SIGKILL)
        yield


def frozen_worker(stage: Stage) -> AbstractContextManager[None]:
    return frozen(stage.service.old_worker())


def refused(route: str, code: str) -> Sign:
    """Requests of this route are refused with this code."""
    labels = {"route": route, "status": "504" if code == "deadline_exceeded" else "503"}
    entry = {"message": "request", "code": code}
    return Sign(entry, "astrolabe_request_seconds_count", labels)


def failing(task: str) -> Sign:
    """A background task fails."""
    entry = {"message": "a background task fails", "task": task}
    return Sign(entry, "astrolabe_background_errors_total", {"task": task}, task)


def over(path: Callable[[Stage], Path]) -> dict[str, Befall]:
    """What can befall a file that somebody else writes."""
    return {
        "garbage": lambda stage: machine.replaced(path(stage), GARBAGE),
        "a folder in its place": lambda stage: machine.replaced(path(stage), folder=True),
        "removed": lambda stage: machine.replaced(path(stage)),
        "no permission": lambda stage: machine.forbidden(path(stage)),
    }


def of_choice() -> Iterator[Case]:
    """Faults of the file that says which bundles to serve, and of its folder."""
    fails, file = failing("follow-choice"), over(lambda stage: stage.state / CHOICE_FILE)
    for fault, befall in {
        "garbage": file["garbage"],
        "a folder in its place": file["a folder in its place"],
        "folder without permission": lambda stage: machine.forbidden(stage.state),
        "folder moved away": lambda stage: machine.replaced(stage.state, b""),
    }.items():
        yield Case("follow-choice", fault, befall, choice_followed, fails)
    yield Case("follow-choice", "removed", file["removed"], choice_followed)
    sign = refused("/admin/bundles/activate", "state_unavailable")
    for fault, befall in {
        "disk full": lambda stage: machine.full(stage.state),
        "read-only mount": lambda stage: machine.read_only(stage.state),
    }.items():
        yield Case(
            *("choice written", fault, befall, choice_followed, sign),
            provoke=Stage.activate,
            mounts=True,
        )


def of_pointer() -> Iterator[Case]:
    """Faults of the pointer CURRENT."""

    def naming(name: bytes) -> Befall:
        return lambda stage: machine.replaced(stage.root / POINTER, name)

    faults = over(lambda stage: stage.root / POINTER) | {
        "names no bundle": naming(b"nowhere"),
        "names a damaged bundle": naming(b"damaged"),
    }
    fails = failing("follow-pointer")
    for fault, befall in faults.items():
        yield Case("follow-pointer", fault, befall, pointer_followed, fails)
    yield Case(
        *("follow-pointer", "disk full", lambda stage: machine.full(stage.state), caught_up, fails),
        provoke=move_pointer,
        mounts=True,
    )


def of_files_read_at_opening() -> Iterator[Case]:
    """Faults of the files that are read for every bundle that is opened."""
    sign = Sign(
        {"message": "bundle refused", "code": "settings_invalid"},
        "astrolabe_bundle_swap_total",
        {"result": "failed"},
    )
    rules, keys = over(lambda stage: stage.rules), over(lambda stage: stage.keys)
    for helper, faults in {"label rules read": rules, "bundle keys read": keys}.items():
        for fault, befall in faults.items():
            yield Case(helper, fault, befall, choice_followed, sign, provoke=Stage.activate)


def of_catalogue() -> Iterator[Case]:
    """Faults of the catalogue's file, and of its disk."""
    unavailable = refused("/v1/labels", "catalogue_unavailable")
    late = refused("/v1/labels", "deadline_exceeded")
    for fault, befall in {
        "folder without permission": lambda stage: machine.forbidden(stage.state),
        "folder moved away": lambda stage: machine.replaced(stage.state, b""),
        "locked by another program": lambda stage: machine.locked(database(stage)),
    }.items():
        yield Case("catalogue", fault, befall, label_followed, unavailable, provoke=Stage.add_label)
    yield Case(
        *("catalogue", "disk full", lambda stage: machine.full(stage.state), label_followed),
        unavailable,
        provoke=Stage.add_label,
        mounts=True,
    )
    yield Case(
        *("catalogue", "disk stands still"),
        lambda stage: machine.standing(stage.state.parent),
        label_followed,
        late,
        provoke=add_several,
        mounts=True,
    )
    yield Case(
        *("catalogue", "a worker starts on a read-only mount", start_read_only, taken_by_all),
        unavailable,
        provoke=add_several,
        breaks=True,
        mounts=True,
    )
    yield Case(
        *("follow-labels", "a row that cannot be read"),
        lambda stage: machine.bad_row(database(stage)),
        label_followed,
        failing("follow-labels"),
    )
    yield Case(
        *("retire", "catalogue locked by another program"),
        lambda stage: machine.locked(database(stage)),
        choice_followed,
        provoke=write_and_swap,
        hold_s=4.0,
    )


def of_processes() -> Iterator[Case]:
    """Faults of a worker, of the master, and of what the system allows them."""
    hang = Sign({"message": "a worker does not answer: killed"}, "astrolabe_worker_hangs_total")
    short = Sign(
        {"logger": "service.edge.descriptors"}, "astrolabe_no_descriptor_total", again_s=LOG_EVERY_S
    )
    frozen_long = ("heartbeat", "worker frozen past its time", frozen_worker, two_workers)
    yield Case(*frozen_long, hang, breaks=True)
    frozen_shortly = ("show-metrics", "worker frozen for a moment", frozen_worker, two_workers)
    yield Case(*frozen_shortly, breaks=True)
    no_file = ("descriptors", "none free in a worker", lost_descriptors, label_followed)
    yield Case(*no_file, short, breaks=True)
    no_process = ("supervise", "no process can be started", no_fork, two_workers)
    yield Case(*no_process, failing("supervise"), breaks=True, groups=True)
    nonsense = ("watch-workers", "/proc says nonsense", nonsense_of_a_worker, two_workers)
    yield Case(*nonsense, failing("watch-workers"), breaks=True, mounts=True)


def of_traces() -> Iterator[Case]:
    """Faults of the collector of traces."""
    for fault, befall in {
        "collector stands still": lambda stage: stage.collector.standing(),
        "collector refuses": lambda stage: stage.collector.refusing(),
    }.items():
        yield Case("export-traces", fault, befall, traces_arrive, failing("export-traces"))


CASES: Final = (
    *of_choice(),
    *of_pointer(),
    *of_files_read_at_opening(),
    *of_catalogue(),
    *of_processes(),
    *of_traces(),
)
LEFT_OUT: Final = {
    "free-memory, forced-drain, live-recall, event-loop": "they use no file, disk or network",
    "fields": "it reads a file of the bundle that was verified just before",
    "API keys, TLS certificate": "they are read once, at the start",
}
"""Helpers that no fault from outside the process reaches, and why."""
