"""Do clients that send a body over the limit get the 413, or a broken connection?

    python -m tests.bench.refused_bodies [--rounds 5]

Each of Python's urllib, httpx and curl sends bodies of 2, 5, 20 and 60 MB in each round. All three
send the whole body before they read. Exits with 1 if an answer is missing.
"""

import argparse
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import httpx

from tests.support.processes import service_process
from tests.support.tiny_bundle import write_tiny_bundle

SIZES = (2_000_000, 5_000_000, 20_000_000, 60_000_000)
JSON = {"Content-Type": "application/json"}


def by_urllib(url: str, body: Path) -> str:
    """The status, or the error in a word."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, body.read_bytes(), JSON), timeout=60)
    except urllib.error.HTTPError as exc:
        return str(exc.code)
    except OSError as exc:
        return type(exc).__name__
    return "200"


def by_httpx(url: str, body: Path) -> str:
    """The status, or the error in a word."""
    try:
        return str(httpx.post(url, content=body.read_bytes(), headers=JSON, timeout=60).status_code)
    except httpx.HTTPError as exc:
        return type(exc).__name__


def by_curl(url: str, body: Path) -> str:
    """The status, 000 for none; without `Expect`, or curl would ask before it sends."""
    flags = ["-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Expect:"]
    flags += ["-H", "Content-Type: application/json", "--data-binary", f"@{body}"]
    return subprocess.run(["curl", *flags, url], capture_output=True, text=True).stdout


def main() -> int:
    """Print how many of each client's requests were answered 413."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    n_sent = n_answered = 0
    with tempfile.TemporaryDirectory() as scratch:
        bodies = [Path(scratch) / str(size) for size in SIZES]
        for body, size in zip(bodies, SIZES, strict=True):
            body.write_bytes(b"a" * size)
        with service_process(write_tiny_bundle(Path(scratch) / "bundle")) as service:
            url = f"http://127.0.0.1:{service.port}/v1/recommend"
            for send in (by_urllib, by_httpx, by_curl):
                statuses = [send(url, body) for _ in range(args.rounds) for body in bodies]
                n_sent, n_answered = n_sent + len(statuses), n_answered + statuses.count("413")
                print(
                    f"{send.__name__[3:]}: {statuses.count('413')} of {len(statuses)} got the 413"
                )
    print(f"{n_answered} of {n_sent}")
    return int(n_answered < n_sent)


if __name__ == "__main__":
    sys.exit(main())
