"""Do faults of the machine end a helper for good, or lose a change that was acknowledged?

    python -m tests.bench.faults [--seed 1] [--rounds 50] [--kills 20] [--only helpers]

The first part serves one tiny bundle in two workers with everything switched on that works beside
the requests. Each round draws a helper and a fault, holds the fault for a moment and lifts it. The
service must answer all the while, a log line and a metric must show the fault, and afterwards the
helper must work again without a restart. The second part (`--only writes`) has a client change
labels as fast as it can while workers die or freeze, the disk fills, or the catalogue's file goes
away. Every change that was acknowledged must then be there.

Linux. As root it mounts a disk of its own in a mount namespace of its own; otherwise it says what
it leaves out.
"""

import argparse
import itertools
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.bundle.manifest import POINTER
from tests.support import machine
from tests.support.acknowledged import FAULTS, Trial
from tests.support.bundle_root import reseal
from tests.support.helper_faults import (
    CASES,
    HEALED_S,
    LEFT_OUT,
    SILENCE_S,
    Case,
    Collector,
    Sign,
    Stage,
)
from tests.support.observed import observed, wait_until
from tests.support.signing import Author
from tests.support.tiny_bundle import write_tiny_bundle

DISK_MB = 32
SEEN_S = 20.0
"""A fault shows in log and metrics by then: twice the time between two reports of the master."""


@dataclass(frozen=True)
class Round:
    """What one round of the first part showed; None where it did not happen in time."""

    seen_s: float | None
    healed_s: float | None
    outcomes: "Counter[str]"


def main() -> int:
    args = _parser().parse_args()
    if not args.mounts and machine.may_mount():
        again = (sys.executable, "-m", "tests.bench.faults", "--mounts", *sys.argv[1:])
        os.execvp("unshare", ("unshare", "--mount", *again))
    ok = True
    with tempfile.TemporaryDirectory() as folder, ExitStack() as mounted:
        place, may_mount = Path(folder) / "disk", args.mounts
        try:
            if may_mount:
                mounted.enter_context(machine.disk(place, DISK_MB))
        except OSError as exc:
            print(f"no disk of its own: {exc}")
            may_mount = False
        place.mkdir(exist_ok=True)
        if args.only != "writes":
            ok &= show_helpers(place, args.seed, args.rounds, may_mount)
        if args.only != "helpers":
            ok &= show_writes(place, args.seed, args.kills, may_mount)
    return 0 if ok else 1


@contextmanager
def stage(place: Path) -> Iterator[Stage]:
    """A service with all its helpers, its state on the disk at `place`."""
    home = place.parent
    author, collector = Author(home, "author"), Collector()
    tiny = write_tiny_bundle(home / "tiny")
    root = home / "bundles"
    for minute, name in enumerate("abpq"):
        author.sign(reseal(tiny, root / name, created=f"2026-03-03T00:{minute:02d}:00Z"))
    damaged = author.sign(reseal(tiny, root / "damaged", created="2026-03-04T00:00:00Z"))
    (damaged / "labels.jsonl").write_bytes(b"{}")
    (root / POINTER).write_text("p")
    rules = home / "rules.json"
    rules.write_text('{"tiny": {"exclude": {"ids": ["L000"]}}}')
    state = place / "state"
    os.environ["OTEL_BSP_SCHEDULE_DELAY"] = "300"  # milliseconds between two batches of spans
    with observed(
        root,
        *("--state-dir", str(state), "--watch-s", "0.5", "--label-rules", str(rules)),
        *("--bundle-keys", str(author.public), "--live-recall-share", "0.5"),
        *("--adaptive-effort", "true", "--cache-entries", "64", "--log-requests", "errors"),
        *("--otel-endpoint", collector.url, "--worker-silence-s", str(SILENCE_S)),
    ) as service:
        group = machine.PIDS / f"astrolabe-faults-{os.getpid()}"
        made = Stage(service, root, state, rules, author.public, collector, group, home / "figures")
        assert made.activate() == 200
        assert made.add_label()
        yield made


def play(case: Case, on: Stage, rng: random.Random) -> Round:
    """One round: the fault begins, shows, ends, and its helper works again."""
    service, sign = on.service, case.sign
    before = Counter(service.outcomes)
    counted = service.metric(sign.metric, **sign.labels) if sign else 0.0

    def shows() -> bool:
        return sign is None or (
            service.logged(began_s - sign.again_s, **sign.entry)
            and service.metric(sign.metric, **sign.labels) > counted
            and not (sign.task and healthy(on, sign.task))
        )

    provoking = threading.Thread(target=case.provoke, args=(on,))
    with case.befall(on):
        began_s = time.monotonic()
        provoking.start()
        time.sleep(case.hold_s + rng.uniform(0.5, 2.0))
        seen = wait_until(shows, SEEN_S)
        seen_s = None if seen is None else time.monotonic() - began_s
    lifted_s = time.monotonic()
    provoking.join()
    healed = case.heal(on) and wait_until(lambda: is_well(on, sign), HEALED_S) is not None
    healed_s = time.monotonic() - lifted_s if healed else None
    return Round(seen_s, healed_s, service.outcomes - before)


def healthy(on: Stage, task: str) -> bool:
    """What the gauge of a background task says."""
    return on.service.metric("astrolabe_background_healthy", task=task) == 1


def is_well(on: Stage, sign: Sign | None) -> bool:
    """Whether both workers run, and the task of this sign works."""
    tasks_work = sign is None or not sign.task or healthy(on, sign.task)
    return tasks_work and on.service.metric("astrolabe_workers") == 2


def is_good(case: Case, rounds: list[Round]) -> bool:
    """Whether all rounds showed the fault, healed, and left no request unanswered."""
    broken = {outcome for each in rounds for outcome in each.outcomes} - {"answered", "over 1 s"}
    allowed = {"broken", "status 504"} if case.breaks else set()
    return broken <= allowed and all(
        each.seen_s is not None and each.healed_s is not None for each in rounds
    )


def show_helpers(place: Path, seed: int, n_rounds: int, may_mount: bool) -> bool:
    """Play the first part and print its table; returns whether nothing went wrong."""
    rng = random.Random(seed)
    may_group = may_mount and machine.PIDS.is_dir()
    cases = [c for c in CASES if (may_mount or not c.mounts) and (may_group or not c.groups)]
    for case in (case for case in CASES if case not in cases):
        what = f"a group under {machine.PIDS}" if case.groups else "a mount"
        print(f"left out: {case.helper}, {case.fault}: it needs {what}")
    for helpers, why in LEFT_OUT.items():
        print(f"left out: {helpers}: {why}")
    turns = itertools.chain.from_iterable(rng.sample(cases, len(cases)) for _ in itertools.count())
    played: defaultdict[Case, list[Round]] = defaultdict(list)
    with stage(place) as on:
        for case in itertools.islice(turns, n_rounds):
            played[case].append(play(case, on, rng))
            if not is_good(case, played[case][-1:]):
                print(f"{case.helper}, {case.fault}: {played[case][-1]}", file=sys.stderr)
                for _, entry in on.service.entries[-10:]:
                    print(f"    {str(entry)[:2000]}", file=sys.stderr)
    print("| helper | fault | rounds | shown s | works again s | answered | over 1 s | lost |")
    print("|---|---|---|---|---|---|---|---|")
    for case in (case for case in CASES if case in played):
        rounds = played[case]
        outcomes = sum((each.outcomes for each in rounds), Counter())
        shown = longest([each.seen_s for each in rounds]) if case.sign else "has not to"
        print(
            f"| {case.helper} | {case.fault} | {len(rounds)} | {shown} "
            f"| {longest([each.healed_s for each in rounds])} "
            f"| {outcomes['answered']:,} | {outcomes['over 1 s']} "
            f"| {outcomes.total() - outcomes['answered'] - outcomes['over 1 s']} |"
        )
    return all(is_good(case, rounds) for case, rounds in played.items())


def longest(seconds: list[float | None]) -> str:
    """The longest of these times, or that there was none."""
    times = [each for each in seconds if each is not None]
    return f"{max(times):.1f}" if len(times) == len(seconds) else "**never**"


def show_writes(place: Path, seed: int, n_rounds: int, may_mount: bool) -> bool:
    """Play the second part and print its table; returns whether nothing was lost."""
    if not may_mount:
        print("no disk can be mounted here: files that may not grow stand for a full one")
    bundle = write_tiny_bundle(place.parent / "plain")
    print("| fault | rounds | acknowledged | refused | acknowledged too late | in part | lost |")
    print("|---|---|---|---|---|---|---|")
    good = True
    for fault in FAULTS:
        state = place / f"state-{fault.replace(' ', '-')}"
        ledger = Trial(bundle, state, random.Random(seed), may_mount).run(fault, n_rounds)
        shutil.rmtree(state)
        figures = (ledger.acknowledged, ledger.refused, ledger.late, ledger.in_part, ledger.lost)
        print(
            f"| {fault} | {n_rounds} | {' | '.join(f'{each:,}' for each in figures)} |", flush=True
        )
        good &= not (ledger.late or ledger.in_part or ledger.lost)
    return good


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", choices=("helpers", "writes"))
    parser.add_argument("--mounts", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
