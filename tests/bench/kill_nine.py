"""Kills a writer in the middle of its work, again and again, and counts what is left.

    python -m tests.bench.kill_nine [--rounds 20] [--labels 10000]

Each round a process opens the catalogue of a bundle of tests and adds labels, in calls of many and
of few; it is killed with SIGKILL at a random moment. The catalogue is then opened anew: every label
whose call was acknowledged must be there, and no call may be there in part. To try it over HTTP,
give `--writer` a command that takes a state folder, a prefix and a number of labels as its last
three arguments, adds labels named PREFIX-CALL-SIZE-I, and prints one line of ids, comma-separated,
for each acknowledged call.
"""

import argparse
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from service.core.catalogue.changes import Change
from service.core.catalogue.store import ChangeStore, store_path
from service.core.engine import Engine
from tests.service.core.catalogue.shop import catalogue_of, opened
from tests.tiny_bundle import WORDS, write_tiny_bundle

CALLS = (1, 10, 100, 1000)
SEED = 1


def main() -> int:
    args = _parser().parse_args()
    if args.write:
        write(Path(args.write[0]), Path(args.write[1]), args.write[2], int(args.write[3]))
        return 0
    random.seed(SEED)
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_tiny_bundle(Path(folder) / "bundle", kind="flat")
        state = Path(folder) / "state"
        own = [sys.executable, "-m", "tests.bench.kill_nine", "--write", str(bundle)]
        command = shlex.split(args.writer) if args.writer else own
        acknowledged: set[str] = set()
        for turn in range(args.rounds):
            acknowledged |= killed(command, state, f"r{turn}", args.labels)
            if not check(bundle, state, acknowledged, turn):
                return 1
    return 0


def killed(command: list[str], state: Path, prefix: str, n_labels: int) -> set[str]:
    """Ids that a writer acknowledged before it was killed."""
    asked = [*command, str(state), prefix, str(n_labels)]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline()]
        time.sleep(random.random())
        os.kill(writer.pid, signal.SIGKILL)
        lines += list(writer.stdout)
    return {name for line in lines if line.endswith("\n") for name in line.strip().split(",")}


def check(bundle: Path, state: Path, acknowledged: set[str], turn: int) -> bool:
    """Whether all that was acknowledged is there, and of every call all or nothing."""
    started = time.perf_counter()
    engine = Engine.open(bundle, device="cpu")
    store = ChangeStore(store_path(state, engine.manifest.name), engine.manifest.name)
    catalogue = catalogue_of(engine, bundle, store)
    seconds = time.perf_counter() - started
    kept = {change.label_id for change in store.since(0)}
    calls: dict[str, set[str]] = {}
    for name in kept:
        calls.setdefault(name.rsplit("-", 1)[0], set()).add(name)
    parts = [call for call, names in calls.items() if len(names) != int(call.rsplit("-", 1)[1])]
    lost = [name for name in acknowledged if catalogue.row_of(name) is None]
    store.close()
    print(
        f"round {turn + 1}: {len(acknowledged):,} acknowledged, {len(kept):,} kept, "
        f"{len(lost)} lost, {len(parts)} calls in part, opened in {seconds:.1f} s",
        flush=True,
    )
    return not lost and not parts


def write(bundle: Path, state: Path, prefix: str, n_labels: int) -> None:
    """Add labels until killed, or until all are added; one line for each acknowledged call."""
    with opened(bundle, state) as (_, catalogue):
        done = call = 0
        while done < n_labels:
            size = min(CALLS[call % len(CALLS)], n_labels - done)
            names = [f"{prefix}-{call}-{size}-{i}" for i in range(size)]
            texts = [f"{WORDS[i % len(WORDS)]} {WORDS[call % len(WORDS)]}" for i in range(size)]
            catalogue.apply([Change("add", *pair) for pair in zip(names, texts, strict=True)])
            print(",".join(names), flush=True)
            done, call = done + size, call + 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--labels", type=int, default=10_000)
    parser.add_argument("--writer", help="a command in place of the built-in writer")
    parser.add_argument("--write", nargs=4, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
