"""Do the latency and the memory of a service stay the same under a long load?

    python -m tests.bench.soak --bundle var/bundles/gutenberg-bag --rate 600 --minutes 20

Offers one steady rate through `python -m loadtest`. Prints the failures, the p99 of each minute,
how the p99 of the last minute compares to the first, and how the service's resident memory at the
end compares to that after one minute. Client and service share the machine. Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from loadtest.samples import SAMPLES_FILE, Samples
from tests.bench.swaps import memory_mb_of, wait_until_ready

PORT = 18481
EVERY_S = 5.0


def main() -> int:
    """Serve, offer load, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--minutes", type=float, default=20)
    options = parser.parse_args()
    command = [sys.executable, "-m", "service", "--bundle", str(options.bundle), "--device", "cpu"]
    server = subprocess.Popen([*command, "--port", str(PORT), "--log-level", "error"])
    ended = threading.Event()
    memory: list[tuple[float, float]] = []
    url = f"http://127.0.0.1:{PORT}"
    try:
        wait_until_ready(url)
        watcher = threading.Thread(target=_watch, args=(server.pid, memory, ended))
        watcher.start()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "load"
            subprocess.run(
                [
                    *(sys.executable, "-m", "loadtest", "run", "--url", url, "--no-ceiling"),
                    *("--rate", str(options.rate), "--seconds", str(60 * options.minutes)),
                    *("--p99-ms", "100", "--out", str(out)),
                ],
                stdout=subprocess.DEVNULL,
                check=False,  # it fails if the p99 is over --p99-ms; `_report` prints the p99
            )
            ended.set()
            watcher.join()
            _report(out, memory)
    finally:
        ended.set()
        server.terminate()
        server.wait(60)
    return 0


def _watch(pid: int, memory: list[tuple[float, float]], ended: threading.Event) -> None:
    started = time.monotonic()
    while not ended.wait(EVERY_S):
        memory.append((time.monotonic() - started, memory_mb_of(pid)))


def _report(out: Path, memory: list[tuple[float, float]]) -> None:
    step = json.loads((out / "result.json").read_text())["steps"][0]
    samples = Samples.load(out / "steps" / step["name"] / SAMPLES_FILE)
    minute = (samples.scheduled_s // 60).astype(int)
    whole = range(int(samples.scheduled_s[-1] // 60))
    p99 = [
        float(np.quantile(samples.from_schedule_s[(minute == m) & samples.ok], 0.99)) * 1e3
        for m in whole
    ]
    before = next(mb for at, mb in memory if at >= 60)
    after = memory[-2][1]
    print(
        f"{step['n_queries']} queries at {step['rate_scheduled']:.0f}/s: {step['outcomes']}\n"
        f"p99 by minute, ms: {' '.join(f'{ms:.1f}' for ms in p99)}\n"
        f"p99 of the last against the first: {100 * (p99[-1] / p99[0] - 1):+.0f} %\n"
        f"resident: {before:.1f} MB after a minute, {after:.1f} MB at the end "
        f"({100 * (after / before - 1):+.2f} %), at most {max(mb for _, mb in memory):.1f} MB"
    )


if __name__ == "__main__":
    sys.exit(main())
