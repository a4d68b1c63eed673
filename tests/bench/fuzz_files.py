"""Open bundles with damaged files, each in a process of its own, and count the outcomes.

    python -m tests.bench.fuzz_files --count 2000 --only index.hnsw.faiss

The script seals the changed bundle again, so its hashes are right and every byte of the change
reaches the library that reads the file. The engine may open the bundle, or refuse it with an error
of the service. A crash, another error, more than `MEMORY_MB` or more than `LIMIT_S` is a fault, and
the script prints the seed that repeats it. Linux only.
"""

import argparse
import collections
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from service.bundle.manifest import MANIFEST
from service.core.engine import Engine
from service.core.types import Query
from service.errors import AstrolabeError, BundleError
from tests.support.hostile import changed_bytes
from tests.support.tiny_bundle import seal, write_tiny_bundle

MEMORY_MB = 4096
LIMIT_S = 10
"""Choices: the sound bundle opens well within both."""
REFUSED, OTHER_ERROR = 10, 11
"""Exit codes of the child, apart from those that Python itself ends with."""
_OUTCOMES = {0: "opened", REFUSED: "refused", OTHER_ERROR: "FAULT other error"}


def main() -> int:
    """Change each file `--count` times; 0 if no change led to a fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=300, help="changes of each file")
    parser.add_argument("--only", help="one file of the bundle")
    args = parser.parse_args()
    faults = 0
    with tempfile.TemporaryDirectory() as scratch:
        sound = write_tiny_bundle(Path(scratch) / "sound", memory=True, calibrated=False)
        names = sorted(path.name for path in sound.iterdir())
        for name in [args.only] if args.only else names:
            if name not in (MANIFEST, "MODEL_CARD.md"):
                faults += _fuzz(sound, Path(scratch) / "changed", name, args.count)
    return int(faults > 0)


def _fuzz(sound: Path, folder: Path, name: str, count: int) -> int:
    outcomes: collections.Counter[str] = collections.Counter()
    manifest = json.loads((sound / MANIFEST).read_text())
    original = (sound / name).read_bytes()
    began = time.perf_counter()
    for seed in range(count):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder)
        data = changed_bytes(original, random.Random(f"{name} {seed}"))
        (folder / name).write_bytes(data)
        seal(folder, manifest)
        outcome = _outcome_of(folder)
        outcomes[outcome] += 1
        if outcome.startswith("FAULT"):
            print(f"{name} seed {seed}: {outcome}", flush=True)
    seconds = time.perf_counter() - began
    print(f"{name}: {dict(outcomes.most_common())} in {seconds:.0f} s", flush=True)
    return sum(n for outcome, n in outcomes.items() if outcome.startswith("FAULT"))


def _outcome_of(folder: Path) -> str:
    process = os.fork()
    if process == 0:
        os._exit(_open(folder))
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return f"FAULT {signal.Signals(os.WTERMSIG(status)).name}"
    return _OUTCOMES.get(os.WEXITSTATUS(status), f"FAULT exit {os.WEXITSTATUS(status)}")


def _open(folder: Path) -> int:
    """Open the bundle, answer a query, read its labels; return the exit code of the child."""
    signal.alarm(LIMIT_S)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MB << 20, MEMORY_MB << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        engine = Engine.open(folder, device="cpu")
        answers = engine.predict(
            [Query("the white whale", 10, effort) for effort in engine.efforts]
        )
        for answer in answers.predictions:
            for row in answer.rows:
                try:
                    engine.labels[int(row)]
                except BundleError:
                    return REFUSED
    except AstrolabeError:
        return REFUSED
    except BaseException as exc:
        os.write(1, f"{type(exc).__name__}: {exc}"[:300].encode() + b"\n")
        return OTHER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
