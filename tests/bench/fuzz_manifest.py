"""Verify many changed manifests and count the outcomes.

    python -m tests.bench.fuzz_manifest --count 100000

Each must give a verified bundle or a BundleError, within `SLOW_S`. Any other outcome is a fault:
the script prints the seed that repeats it, and exits with 1.
"""

import argparse
import collections
import json
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

from service.bundle.manifest import MANIFEST
from service.bundle.verify import verify
from service.errors import BundleError
from tests.support.hostile import changed_manifest
from tests.support.tiny_bundle import write_tiny_bundle

SLOW_S = 1.0
"""A choice: far above what a sound manifest takes."""


def main() -> int:
    """Verify `--count` changed manifests; 0 if there is no fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first-seed", type=int, default=0)
    args = parser.parse_args()
    outcomes: collections.Counter[str] = collections.Counter()
    faults, slowest_s, slowest_seed = 0, 0.0, 0
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_tiny_bundle(Path(scratch) / "bundle", memory=True, calibrated=False)
        sound = json.loads((folder / MANIFEST).read_text())
        for seed in range(args.first_seed, args.first_seed + args.count):
            (folder / MANIFEST).write_bytes(changed_manifest(sound, random.Random(seed)))
            started = time.perf_counter()
            try:
                verify(folder)
                outcomes["sound"] += 1
            except BundleError as exc:
                outcomes[type(exc).__name__] += 1
            except Exception:
                outcomes["FAULT"] += 1
                faults += 1
                print(f"seed {seed}:\n{traceback.format_exc()}")
            took_s = time.perf_counter() - started
            if took_s > slowest_s:
                slowest_s, slowest_seed = took_s, seed
    seconds = time.perf_counter() - began
    print(f"{args.count} manifests in {seconds:.0f} s, slowest {slowest_s:.3f} s ({slowest_seed})")
    for name, count in outcomes.most_common():
        print(f"{count:8} {name}")
    return int(faults > 0 or slowest_s > SLOW_S)


if __name__ == "__main__":
    sys.exit(main())
