"""How much memory do N workers need, against one process that serves the same bundle?

    python -m tests.bench.workers_memory BUNDLE [--workers 4] [--swaps 3]

Prints the proportional set size (PSS) of every process after some requests. In a process's PSS each
page counts by one over the number of processes that share it, so the sum is the memory that all of
them really use. With `--swaps`, it swaps the bundle and a copy of another id to and fro through the
admin API, and prints the sum at the start, after each swap, and the highest one in between.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from service.process.usage import proportional_bytes
from tests.bench.swaps import KEY, swap, two_bundles

MB = 1 << 20
QUERIES = ("the white whale", "history of rome", "poems about the sea", "a garden in spring")


def main() -> None:
    """Measure one process, then N workers, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--swaps", type=int, default=0)
    options = parser.parse_args()
    if options.swaps:
        measure_swaps(options.bundle, options.workers, options.requests, options.swaps)
        return
    alone = measure(options.bundle, 1, options.requests)
    several = measure(options.bundle, options.workers, options.requests)
    print(f"| | PSS of each, MB | sum, MB | of one process |\n|{'---|' * 4}")
    for name, sizes in (("1 process", alone), (f"master + {options.workers} workers", several)):
        each = ", ".join(f"{size / MB:.0f}" for size in sizes)
        print(f"| {name} | {each} | {sum(sizes) / MB:.0f} | {sum(sizes) / sum(alone):.2f} |")


def measure(bundle: Path, workers: int, requests: int) -> list[int]:
    """PSS in bytes of each process after some requests, the master first."""
    with serving(bundle, workers, "--drain-delay-s", "0") as (pid, url):
        ask_in_parallel(url, requests)
        return sizes(pid)


def measure_swaps(bundle: Path, workers: int, requests: int, swaps: int) -> None:
    """Print the sum of PSS at the start and after each swap, and the highest in between."""
    with tempfile.TemporaryDirectory() as folder:
        root, state = Path(folder) / "bundles", Path(folder) / "state"
        two_bundles(bundle, root)
        with serving(root, workers, "--state-dir", str(state)) as (pid, url):
            ask_in_parallel(url, requests)
            start = sum(sizes(pid))
            print(f"| | sum of PSS, MB | of the start | peak before, MB |\n|{'---|' * 4}")
            print(f"| start | {start / MB:.0f} | 1.00 | |")
            for number in range(swaps):
                with peak_of(pid) as peaks:
                    swap(pid, url, workers, number)
                ask_in_parallel(url, requests)
                now = sum(sizes(pid))
                row = f"| swap {number + 1} | {now / MB:.0f} | {now / start:.2f} "
                print(f"{row}| {max(peaks) / MB:.0f} |", flush=True)


@contextmanager
def serving(bundle: Path, workers: int, *arguments: str) -> Iterator[tuple[int, str]]:
    """A service in so many processes: its master's process id and its URL."""
    command = [sys.executable, "-m", "service", "--bundle", str(bundle), "--port", "0"]
    command += ["--device", "cpu", "--workers", str(workers), *arguments]
    environment = {**os.environ, "ASTROLABE_ADMIN_KEY": KEY} if "--state-dir" in arguments else None
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            url = read_url(process, workers)
            assert process.stderr is not None
            # Somebody must read the log, or its pipe fills and the service stops.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield process.pid, url
        finally:
            process.terminate()


@contextmanager
def peak_of(pid: int) -> Iterator[list[int]]:
    """Sums of PSS in bytes, taken ten times a second within the block."""
    peaks, ended = [sum(sizes(pid))], threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            peaks.append(sum(sizes(pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        ended.set()
        watcher.join()


def sizes(pid: int) -> list[int]:
    """PSS in bytes of each process, the master first."""
    return [proportional_bytes(one) for one in (pid, *children(pid))]


def ask_in_parallel(url: str, requests: int) -> None:
    """Send requests on 16 connections."""
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: ask(url, requests // 16), range(16)))


def ask(url: str, requests: int) -> None:
    """Send requests one after the other on one connection."""
    with httpx.Client(base_url=url) as client:
        for i in range(requests):
            body = {"query": QUERIES[i % len(QUERIES)]}
            client.post("/v1/recommend", json=body).raise_for_status()


def read_url(process: "subprocess.Popen[str]", workers: int) -> str:
    """The address of the service, from its log, once every worker serves."""
    assert process.stderr is not None
    entries = (json.loads(line) for line in process.stderr)
    urls = [next(e["url"] for e in entries if e["message"] == "serving") for _ in range(workers)]
    return str(urls[0])


def children(pid: int) -> list[int]:
    """Process ids of the children of a process."""
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


if __name__ == "__main__":
    main()
