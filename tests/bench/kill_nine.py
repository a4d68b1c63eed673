"""Does a catalogue lose a change if its writer is killed? Kills writers and counts the labels.

    python -m tests.bench.kill_nine [--rounds 20] [--labels 10000] [--http]

In each round a process opens the catalogue of a tiny bundle and adds labels, in calls of few and of
many. The script kills it with SIGKILL at a random moment and opens the catalogue anew. Every label
whose call was acknowledged must be there, and no call may be there in part.

With `--http` the process is the service, and the calls are POST /v1/labels. The script then also
looks up a hundred labels of earlier rounds in the restarted service.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from service.core.catalogue.changes import Change
from service.core.catalogue.sqlite_store import SqliteStore, store_path
from service.core.engine import Engine
from tests.support.shop import catalogue_of, opened
from tests.support.tiny_bundle import WORDS, write_tiny_bundle

CALLS = (1, 10, 100, 1000)
"""Labels in one call; the calls take turns."""
SEED = 1
PORT = 18461
KEY = "kill"


def main() -> int:
    args = _parser().parse_args()
    if args.write:
        write(Path(args.write[0]), Path(args.write[1]), args.write[2], int(args.write[3]))
        return 0
    random.seed(SEED)
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_tiny_bundle(Path(folder) / "bundle", kind="flat")
        state = Path(folder) / "state"
        writer = [sys.executable, "-m", "tests.bench.kill_nine", "--write", str(bundle)]
        acknowledged: set[str] = set()
        for turn in range(args.rounds):
            if args.http:
                acknowledged |= killed_service(bundle, state, turn, args.labels, acknowledged)
            else:
                acknowledged |= killed(writer, state, f"r{turn}", args.labels)
            if not check(bundle, state, acknowledged, turn):
                return 1
    return 0


def killed(command: list[str], state: Path, prefix: str, n_labels: int) -> set[str]:
    """Ids that a writer acknowledged before it was killed."""
    command = [*command, str(state), prefix, str(n_labels)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline()]
        time.sleep(random.random())
        os.kill(writer.pid, signal.SIGKILL)
        lines += list(writer.stdout)
    return {name for line in lines if line.endswith("\n") for name in line.strip().split(",")}


def killed_service(
    bundle: Path, state: Path, turn: int, n_labels: int, earlier: set[str]
) -> set[str]:
    """Ids that a service acknowledged before it was killed; it must know the `earlier` ones."""
    command = [sys.executable, "-m", "service", "--bundle", str(bundle), "--port", str(PORT)]
    command += ["--admin-key", KEY, "--state-dir", str(state), "--log-level", "error"]
    acknowledged: set[str] = set()
    with (
        subprocess.Popen(command) as server,
        httpx.Client(
            base_url=f"http://127.0.0.1:{PORT}", headers={"Authorization": f"Bearer {KEY}"}
        ) as client,
    ):
        try:
            _wait(client)
            for name in random.sample(sorted(earlier), min(100, len(earlier))):
                assert client.get(f"/v1/labels/{name}").status_code == 200, name
            killer = threading.Timer(0.3 + 2 * random.random(), server.kill)
            killer.start()
            for names, texts in calls(f"r{turn}", n_labels):
                labels = [{"id": i, "text": text} for i, text in zip(names, texts, strict=True)]
                client.post("/v1/labels", json={"labels": labels}).raise_for_status()
                acknowledged |= set(names)
        except httpx.TransportError:
            pass  # the timer has killed the service
        finally:
            server.kill()
    return acknowledged


def _wait(client: httpx.Client) -> None:
    for _ in range(600):
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit("the service did not become ready within a minute")


def check(bundle: Path, state: Path, acknowledged: set[str], turn: int) -> bool:
    """Whether the catalogue holds all acknowledged labels and no call in part; prints counts."""
    started = time.perf_counter()
    engine = Engine.open(bundle, device="cpu")
    store = SqliteStore(store_path(state, engine.manifest.name), engine.manifest.name)
    catalogue = catalogue_of(engine, store)
    seconds = time.perf_counter() - started
    stored = {change.label_id for change in store.since(0)}
    by_call: dict[str, set[str]] = {}
    for name in stored:
        by_call.setdefault(name.rsplit("-", 1)[0], set()).add(name)
    parts = [call for call, names in by_call.items() if len(names) != int(call.rsplit("-", 1)[1])]
    lost = [name for name in acknowledged if catalogue.row_of(name) is None]
    store.close()
    print(
        f"round {turn + 1}: {len(acknowledged):,} acknowledged, {len(stored):,} stored, "
        f"{len(lost)} lost, {len(parts)} calls in part, opened in {seconds:.1f} s",
        flush=True,
    )
    return not lost and not parts


def write(bundle: Path, state: Path, prefix: str, n_labels: int) -> None:
    """Add labels until killed or done; print the ids of each call once it is acknowledged."""
    with opened(bundle, state) as (_, catalogue):
        for names, texts in calls(prefix, n_labels):
            catalogue.apply([Change("add", *pair) for pair in zip(names, texts, strict=True)])
            print(",".join(names), flush=True)


def calls(prefix: str, n_labels: int) -> Iterator[tuple[list[str], list[str]]]:
    """The ids PREFIX-CALL-SIZE-I and the texts of one call after the other."""
    n_added = call = 0
    while n_added < n_labels:
        size = min(CALLS[call % len(CALLS)], n_labels - n_added)
        names = [f"{prefix}-{call}-{size}-{i}" for i in range(size)]
        yield names, [f"{WORDS[i % len(WORDS)]} {WORDS[call % len(WORDS)]}" for i in range(size)]
        n_added, call = n_added + size, call + 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--labels", type=int, default=10_000)
    parser.add_argument("--http", action="store_true", help="kill a service, and ask it by HTTP")
    parser.add_argument("--write", nargs=4, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
