"""How much memory do N workers need, against one process that serves the same bundle?

    python -m tests.bench.workers_memory BUNDLE [--workers 4]

Prints the proportional set size (PSS) of every process after some requests. In a process's PSS each
page counts by one over the number of processes that share it, so the sum is the memory that all of
them really use.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from service.process.usage import proportional_bytes

MB = 1 << 20
QUERIES = ("the white whale", "history of rome", "poems about the sea", "a garden in spring")


def main() -> None:
    """Measure one process, then N workers, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    alone = measure(options.bundle, 1, options.requests)
    several = measure(options.bundle, options.workers, options.requests)
    print(f"| | PSS of each, MB | sum, MB | of one process |\n|{'---|' * 4}")
    for name, sizes in (("1 process", alone), (f"master + {options.workers} workers", several)):
        each = ", ".join(f"{size / MB:.0f}" for size in sizes)
        print(f"| {name} | {each} | {sum(sizes) / MB:.0f} | {sum(sizes) / sum(alone):.2f} |")


def measure(bundle: Path, workers: int, requests: int) -> list[int]:
    """PSS in bytes of each process after some requests, the master first."""
    command = [sys.executable, "-m", "service", "--bundle", str(bundle), "--port", "0"]
    command += ["--device", "cpu", "--workers", str(workers), "--drain-delay-s", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = read_url(process, workers)
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda _: ask(url, requests // 16), range(16)))
            return [proportional_bytes(pid) for pid in (process.pid, *children(process.pid))]
        finally:
            process.terminate()


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
