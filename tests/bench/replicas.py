"""How soon do replicas see each other's label changes, and does a kill lose any?

    python -m tests.bench.replicas --bundle BUNDLE --replicas 3 --labels 200 --kills 20

Starts replicas of a bundle over one PostgreSQL server (that of the tests). Adds labels through one
replica after another and asks the others until each answers the label's own text with it. Then,
round by round, one client adds labels through all of them while a replica or the database is killed
(SIGKILL, `pg_ctl stop -m immediate`) and started again. At the end every label whose addition was
acknowledged must be in the database and be known to each replica.
"""

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.postgres import Server, execute, running_server

KEY = "replicas"
READY_S = 60.0
FIRST_PORT = 18471


class Replica:
    """One process of the service, on a port of its own."""

    def __init__(self, bundle: Path, url: str, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"
        self._command = [
            *(sys.executable, "-m", "service", "--bundle", str(bundle), "--port", str(port)),
            *("--catalogue-url", url, "--admin-key", KEY, "--log-level", "error"),
            *("--drain-delay-s", "0"),
        ]
        self.start()

    def start(self) -> None:
        """Start it; `wait` says when it is ready."""
        self.process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)

    def wait(self) -> None:
        """Return once it is ready."""
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"{self.base}/readyz", timeout=2).close()
                return
            except OSError:
                if self.process.poll() is not None:
                    self.start()  # it does not start without its database
                time.sleep(0.05)
        raise SystemExit(f"{self.base} is not ready after {READY_S:g} s")

    def post(self, path: str, body: Any) -> Any:
        """The answer to a JSON body; raises OSError."""
        request = urllib.request.Request(
            f"{self.base}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def has(self, label_id: str) -> bool:
        """Whether the replica knows a label with this id."""
        try:
            urllib.request.urlopen(f"{self.base}/v1/labels/{label_id}", timeout=10).close()
        except urllib.error.HTTPError as exc:
            if exc.code != 404:
                raise
            return False
        return True


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with running_server() as server:
        ports = range(FIRST_PORT, FIRST_PORT + options.replicas)
        replicas = [Replica(options.bundle, server.url, port) for port in ports]
        try:
            for replica in replicas:
                replica.wait()
            _visibility(replicas, options.labels)
            return _kills(server, replicas, options.kills, random.Random(options.seed))
        finally:
            for replica in replicas:
                replica.process.kill()
                replica.process.wait()


def _visibility(replicas: list[Replica], n_labels: int) -> None:
    waits_ms = []
    for number in range(n_labels):
        writer, label_id = replicas[number % len(replicas)], f"seen-{number}"
        writer.post("/v1/labels", {"labels": [{"id": label_id, "text": f"label {number}"}]})
        begin = time.monotonic()
        for other in replicas:
            while not other.has(label_id):
                time.sleep(0.005)
            if other is not writer:
                waits_ms.append((time.monotonic() - begin) * 1e3)
    waits_ms.sort()
    print(
        f"{len(waits_ms)} looks: p50 {statistics.median(waits_ms):.0f} ms, "
        f"p99 {waits_ms[int(0.99 * len(waits_ms))]:.0f} ms, longest {waits_ms[-1]:.0f} ms"
    )


def _kills(server: Server, replicas: list[Replica], rounds: int, draw: random.Random) -> int:
    acknowledged: list[str] = []
    for number in range(rounds):
        stop = threading.Event()
        writer = threading.Thread(target=_write, args=(replicas, number, stop, acknowledged))
        writer.start()
        time.sleep(draw.uniform(0.2, 1.0))
        victim = draw.randrange(len(replicas) + 1)
        if victim == len(replicas):
            server.stop("immediate")
            server.start()
        else:
            replicas[victim].process.send_signal(signal.SIGKILL)
            replicas[victim].process.wait()
            replicas[victim].start()
        for replica in replicas:
            replica.wait()
        stop.set()
        writer.join()
    time.sleep(2)
    rows = execute(server.url, "SELECT label_id FROM astrolabe.changes")
    kept = {row[0] for row in rows}
    lost = [label_id for label_id in acknowledged if label_id not in kept]
    unknown = sum(not replica.has(label_id) for label_id in acknowledged for replica in replicas)
    print(
        f"{rounds} kills: {len(acknowledged)} labels acknowledged, {len(lost)} lost, "
        f"{unknown} not known to a replica"
    )
    return 1 if lost or unknown else 0


def _write(
    replicas: list[Replica], round_: int, stop: threading.Event, acknowledged: list[str]
) -> None:
    number = 0
    while not stop.is_set():
        label_id = f"kill-{round_}-{number}"
        replica = replicas[number % len(replicas)]
        number += 1
        try:
            replica.post("/v1/labels", {"labels": [{"id": label_id, "text": label_id}]})
        except OSError:
            continue  # not acknowledged: it may be there or not
        acknowledged.append(label_id)


if __name__ == "__main__":
    sys.exit(main())
