"""Is every change that was acknowledged still there? A client that changes labels, and its ledger.

The client changes labels as fast as it can and notes what it was told. A call whose answer never
came is in doubt: all of its changes were made, or none. A call that was refused made none.
"""

import http.client
import json
import math
import os
import random
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support import machine
from tests.support.faults import frozen
from tests.support.observed import ANSWER_S, KEY, Observed, observed, wait_until
from tests.support.tiny_bundle import WORDS

MAX_CHANGES: Final = 4
"""Changes in one call."""
N_EARLIER: Final = 100
"""Labels of earlier rounds that are looked at again after each round; all are after the last."""
N_ASKED: Final = 10
"""Labels after each round that a recommendation must find."""
SILENCE_S: Final = 2.0
HEADERS: Final = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}

Texts = dict[str, str | None]
"""The text of each label by its id; None for one that was removed."""


@dataclass
class Ledger:
    """What the service said of each label, and how often."""

    known: Texts = field(default_factory=dict)
    doubts: list[tuple[Texts, Texts]] = field(default_factory=list)
    """Of each call without an answer: the labels before it, and after it."""
    touched: set[str] = field(default_factory=set)
    acknowledged: int = 0
    refused: int = 0
    late: int = 0
    """Changes acknowledged by calls that began after the file had gone."""
    lost: int = 0
    """Labels that are not as they were acknowledged, or as they were before a refusal."""
    in_part: int = 0


class Writer:
    """A client that changes labels without a pause; if its connection breaks, it opens another.

    A call that begins after `gone_s` (`time.monotonic`) must not be acknowledged. One that is
    refused and began before it is in doubt: it may be in the file that was then taken away.
    """

    def __init__(self, port: int, ledger: Ledger, rng: random.Random) -> None:
        self.gone_s: float | None = None
        self._port, self._ledger, self._rng = port, ledger, rng
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def stop(self) -> None:
        """Return after the answer to the last call."""
        self._stop.set()
        self._thread.join()

    def _write(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_S)
        while not self._stop.is_set():
            before, after, body = self._draw()
            began_s = time.monotonic()
            try:
                connection.request("POST", "/v1/label-changes", body, HEADERS)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as exc:
                connection.close()
                if isinstance(exc, ConnectionRefusedError):  # nobody has read the call
                    time.sleep(0.01)
                else:
                    self._ledger.doubts.append((before, after))
                continue
            self._note(answer.status, began_s, before, after)
        connection.close()

    def _note(self, status: int, began_s: float, before: Texts, after: Texts) -> None:
        ledger, gone_s = self._ledger, self.gone_s
        ledger.touched |= set(after)
        if status == 200:
            ledger.known |= after
            ledger.acknowledged += len(after)
            ledger.late += len(after) * (gone_s is not None and began_s > gone_s)
            return
        ledger.refused += len(after)
        if gone_s is not None and began_s < gone_s:
            ledger.doubts.append((before, after))

    def _draw(self) -> tuple[Texts, Texts, str]:
        """Labels before and after the next call, and its body."""
        ledger, rng = self._ledger, self._rng
        in_doubt = {name for before, _ in ledger.doubts for name in before}
        live = [name for name, text in ledger.known.items() if text and name not in in_doubt]
        before: Texts = {}
        after: Texts = {}
        changes = []
        for _ in range(rng.randint(1, MAX_CHANGES)):
            op = rng.choice(("add", "add", "update", "remove"))
            text = " ".join(rng.choices(WORDS, k=3))
            name = rng.choice(live) if op != "add" and live else f"n-{rng.getrandbits(60)}"
            if name in after:
                continue
            known = ledger.known.get(name)
            op = op if known else "add"
            before[name], after[name] = known, None if op == "remove" else text
            change = {"op": op, "id": name}
            changes.append(change if op == "remove" else change | {"text": text})
        return before, after, json.dumps({"changes": changes})


def settle(service: Observed, ledger: Ledger, rng: random.Random, all_of_them: bool) -> None:
    """Look up what was changed; count what is lost, and calls that were made in part."""
    with closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=ANSWER_S)) as line:

        def text_of(name: str) -> str | None:
            line.request("GET", f"/v1/labels/{name}", headers=HEADERS)
            answer = line.getresponse()
            label = json.loads(answer.read())
            return label["text"] if answer.status == 200 else None

        for before, after in ledger.doubts:
            found = {name: text_of(name) for name in after}
            if found not in (before, after):  # another worker may follow a moment later
                time.sleep(1.0)
                found = {name: text_of(name) for name in after}
            ledger.in_part += found not in (before, after)
            ledger.known |= found
        ledger.doubts.clear()
        names = set(ledger.known) if all_of_them else set(ledger.touched)
        names |= set(rng.sample(sorted(ledger.known), min(N_EARLIER, len(ledger.known))))
        wrong = {name for name in names if text_of(name) != ledger.known.get(name)}
        if wrong:
            time.sleep(1.0)
            wrong = {name for name in wrong if text_of(name) != ledger.known.get(name)}
        live = [name for name, text in ledger.known.items() if text and name not in wrong]
        for name in rng.sample(live, min(N_ASKED, len(live))):
            query = {"query": ledger.known[name], "allow": [name], "k": 1}
            line.request("POST", "/v1/recommend", json.dumps(query), HEADERS)
            answer = json.loads(line.getresponse().read())
            if [label["id"] for label in answer["results"][0]["labels"]] != [name]:
                wrong.add(name)
        ledger.lost += len(wrong)
        ledger.touched.clear()


PIECES: Final = (("",), ("-wal",), ("-shm",), ("", "-wal", "-shm"))
"""What goes away of a catalogue's three files, by the ends of their names."""


def take_away(database: Path, aside: Path, by_copies: bool, rng: random.Random) -> None:
    """Move some of the files aside; with `by_copies` put other files of the same bytes there."""
    aside.mkdir()
    for end in rng.choice(PIECES):
        path = Path(f"{database}{end}")
        path.rename(aside / path.name)
        if by_copies:
            shutil.copyfile(aside / path.name, path)


def restore(database: Path, aside: Path) -> None:
    """As docs/catalogue.md says, after the end of the service: from a backup of what was taken."""
    whole = aside / "whole"
    whole.mkdir()
    for end in ("", "-wal"):
        name = f"{database.name}{end}"
        for folder in (database.parent, aside):  # what was taken away counts
            with suppress(FileNotFoundError):
                shutil.copyfile(folder / name, whole / name)
    backup = aside / "backup"
    with (
        closing(sqlite3.connect(whole / database.name)) as source,
        closing(sqlite3.connect(backup)) as target,
    ):
        source.backup(target)
    for end in ("-wal", "-shm"):
        Path(f"{database}{end}").unlink(missing_ok=True)
    shutil.move(backup, database)
    shutil.rmtree(aside)


class Trial:
    """One catalogue that the same fault befalls again and again, and the ledger of its client."""

    def __init__(self, bundle: Path, state: Path, rng: random.Random, may_mount: bool) -> None:
        self.ledger = Ledger()
        self._bundle, self._state, self._rng = bundle, state, rng
        self._may_mount = may_mount

    def run(self, fault: str, rounds: int) -> Ledger:
        """The ledger after so many rounds of a fault of `FAULTS`."""
        FAULTS[fault](self, rounds)
        with self._serving(2) as service:  # and once more after a restart
            settle(service, self.ledger, self._rng, all_of_them=True)
        return self.ledger

    def kill_worker(self, rounds: int) -> None:
        with self._serving(4) as service:
            for _ in range(rounds):
                victim = service.old_worker()
                with self._writing(service):
                    os.kill(victim, signal.SIGKILL)
                    time.sleep(self._rng.uniform(0.2, 0.6))
                self._settle(service)

    def freeze_worker(self, rounds: int) -> None:
        with self._serving(4) as service:
            for _ in range(rounds):
                victim = service.old_worker()
                with self._writing(service), frozen(victim):
                    wait_until(lambda gone=victim: gone not in service.workers, 20.0)
                self._settle(service)

    def kill_all(self, rounds: int) -> None:
        for _ in range(rounds):
            with self._serving(2) as service:
                self._settle(service)
                with self._writing(service):
                    pids = [service.master, *service.workers]
                    for pid in self._rng.sample(pids, len(pids)):
                        os.kill(pid, signal.SIGKILL)

    def fill_disk(self, rounds: int) -> None:
        with self._serving(2) as service:
            for _ in range(rounds):
                limited = machine.short_files(service.workers)
                with self._writing(service):
                    with machine.full(self._state) if self._may_mount else limited:
                        time.sleep(self._rng.uniform(0.2, 0.8))
                    time.sleep(0.1)
                self._settle(service)

    def replace_files(self, rounds: int) -> None:
        self._take_away(rounds, by_copies=True)

    def remove_files(self, rounds: int) -> None:
        self._take_away(rounds, by_copies=False)

    def _take_away(self, rounds: int, by_copies: bool) -> None:
        database, aside = self._state / "tiny.sqlite", self._state / "aside"
        for _ in range(rounds):
            with self._serving(2) as service:
                self._settle(service)
                with self._writing(service) as writer:
                    writer.gone_s = math.inf  # it goes from now on
                    take_away(database, aside, by_copies, self._rng)
                    writer.gone_s = time.monotonic()
                    time.sleep(0.3)
            restore(database, aside)

    def _serving(self, workers: int) -> AbstractContextManager[Observed]:
        options = ("--state-dir", str(self._state), "--log-requests", "none")
        options += ("--worker-silence-s", str(SILENCE_S))
        return observed(self._bundle, *options, workers=workers, clients=0)

    @contextmanager
    def _writing(self, service: Observed) -> Iterator[Writer]:
        """Write around the block, and for a moment of random length before it."""
        writer = Writer(service.port, self.ledger, self._rng)
        try:
            time.sleep(self._rng.uniform(0.2, 0.6))
            yield writer
        finally:
            writer.stop()

    def _settle(self, service: Observed) -> None:
        settle(service, self.ledger, self._rng, all_of_them=False)


FAULTS: Final = {
    "kill -9 of a worker": Trial.kill_worker,
    "kill -9 of all processes": Trial.kill_all,
    "disk full": Trial.fill_disk,
    "files replaced": Trial.replace_files,
    "files removed": Trial.remove_files,
    "worker frozen past its time": Trial.freeze_worker,
}
