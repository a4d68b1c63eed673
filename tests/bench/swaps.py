"""Does a swap of bundles make requests fail, and does the service free the old bundle's memory?

    python -m tests.bench.swaps --bundle var/bundles/gutenberg-bag --rate 400 --swaps 50

Makes a second bundle from the first, with another date and hence another id. Serves the first,
offers a steady load through `python -m loadtest`, and swaps the two to and fro meanwhile. Prints
requests, failures, latency, the seconds that a swap takes, and the service's resident memory after
`WARM_SWAPS` swaps and after all of them. With `--workers N` a swap takes until all N workers are
new, and the memory is the sum of proportional set sizes. Linux only.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from service.bundle.manifest import MANIFEST, POINTER, bundle_id_of
from service.bundle.verify import resolve
from service.process.usage import proportional_bytes

KEY = "swap"
WARM_SWAPS = 2
"""Swaps before the first measurement of memory: each bundle has then been opened by a swap once."""


def main() -> int:
    """Serve, offer load, swap, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=400)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two swaps")
    parser.add_argument("--port", type=int, default=18431)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "bundles"
        two_bundles(options.bundle, root)
        server = _serve(root, options.port, options.workers, Path(folder) / "state")
        try:
            url = f"http://127.0.0.1:{options.port}"
            wait_until_ready(url)
            return _measure(options, url, server.pid, Path(folder) / "load")
        finally:
            server.terminate()
            server.wait(60)


def _measure(options: argparse.Namespace, url: str, pid: int, out: Path) -> int:
    for number in range(WARM_SWAPS):
        swap(pid, url, options.workers, number)
    time.sleep(2)
    before = memory_mb_of(pid)
    seconds = options.swaps * (options.pause + (3.0 if options.workers == 1 else 20.0))
    load = subprocess.Popen(
        [
            *(sys.executable, "-m", "loadtest", "run", "--url", url, "--no-ceiling"),
            *("--rate", str(options.rate), "--seconds", str(seconds)),
            *("--p99-ms", "500", "--out", str(out)),
        ],
        stdout=subprocess.DEVNULL,
    )
    time.sleep(2)
    swap_s, memory_mb = [], []
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(pid, memory_mb, ended))
    watcher.start()
    for number in range(WARM_SWAPS, WARM_SWAPS + options.swaps):
        started = time.monotonic()
        swap(pid, url, options.workers, number)
        swap_s.append(time.monotonic() - started)
        time.sleep(options.pause)
    under_load = load.poll() is None
    load.wait(seconds + 120)
    ended.set()
    watcher.join()
    time.sleep(3)
    after = memory_mb_of(pid)
    step = json.loads((out / "result.json").read_text())["steps"][0]
    print(json.dumps(step, indent=1))
    print(
        f"{options.swaps} swaps, load {'throughout' if under_load else 'ended before the last'}; "
        f"a swap {statistics.median(swap_s):.2f} s (longest {max(swap_s):.2f})\n"
        f"memory: {before:.0f} MB after {WARM_SWAPS} swaps, {after:.0f} MB after "
        f"{WARM_SWAPS + options.swaps} ({100 * (after / before - 1):+.1f} %), at most "
        f"{max(memory_mb):.0f} MB meanwhile"
    )
    return 0


def two_bundles(source: Path, root: Path) -> None:
    """Write the bundle as `b0` under a root, and as `b1` with another id; `b0` is current."""
    first = shutil.copytree(resolve(source), root / "b0")
    second = shutil.copytree(first, root / "b1")
    raw = json.loads((second / MANIFEST).read_text())
    raw["created"] = "2026-01-01T00:00:00Z"
    raw["bundle_id"] = bundle_id_of(raw)
    (second / MANIFEST).write_text(json.dumps(raw))
    (root / POINTER).write_text("b0")


def _serve(root: Path, port: int, workers: int, state: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "service", "--bundle", str(root), "--port", str(port)]
    command += ["--workers", str(workers), "--state-dir", str(state)] if workers > 1 else []
    environment = {**os.environ, "ASTROLABE_ADMIN_KEY": KEY, "ASTROLABE_LOG_LEVEL": "warning"}
    return subprocess.Popen([*command, "--device", "cpu"], env=environment)


def _activate(url: str, number: int) -> str:
    """Activate `b1` at even numbers and `b0` at odd ones; returns the bundle's id."""
    body = json.dumps({"bundle": f"b{(number + 1) % 2}"}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{url}/admin/bundles/activate", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        models = json.load(answer)["models"]
    return str(models[0]["bundles"][0]["bundle_id"])


def swap(pid: int, url: str, workers: int, number: int) -> None:
    """Activate a bundle as `_activate` does; return once all workers are new ones that serve it."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    before = set(children.read_text().split())
    renewed = f'astrolabe_bundle_info{{bundle_id="{_activate(url, number)}"'
    deadline = time.monotonic() + 120
    while workers > 1:
        time.sleep(0.1)
        now = set(children.read_text().split())
        if len(now) == workers and not now & before:
            break
        if time.monotonic() > deadline:
            raise SystemExit("the workers were not replaced within two minutes")
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    assert any(line.startswith(renewed) and line.endswith(" 1.0") for line in lines)


def wait_until_ready(url: str) -> None:
    """Return once /readyz answers 200; ends the script after a minute."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the service did not become ready within a minute")


def memory_mb_of(pid: int) -> float:
    """MiB of a process and its children: resident of one, proportional of several."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if children:
        return sum(proportional_bytes(int(one)) for one in (pid, *children)) / (1 << 20)
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) / 1024


def _watch(pid: int, samples_mb: list[float], ended: threading.Event) -> None:
    while not ended.wait(0.1):
        samples_mb.append(memory_mb_of(pid))


if __name__ == "__main__":
    sys.exit(main())
