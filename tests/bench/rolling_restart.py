"""Does a rolling restart behind a load balancer make requests fail?

    python -m tests.bench.rolling_restart --bundle var/bundles/gutenberg-bag --rate 200

Starts two services behind haproxy (Debian's package), which checks their /readyz. Offers a steady
load through `python -m loadtest`. Meanwhile it ends one service by SIGTERM, starts it again, and
does the same with the other one. Prints the outcomes at the client, the exit codes, and how long
each service took to end. Linux only.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

PORTS = (18451, 18452)
FRONT = 18450

HAPROXY = """
defaults
    mode http
    timeout connect 1s
    timeout client 60s
    timeout server 60s
frontend front
    bind 127.0.0.1:{front}
    default_backend services
backend services
    balance roundrobin
    option httpchk GET /readyz
    default-server check inter 500ms fall 1 rise 1
    server one 127.0.0.1:{one}
    server two 127.0.0.1:{two}
"""


def main() -> int:
    """Start, offer load, restart one service after the other, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=200)
    options = parser.parse_args()
    if shutil.which("haproxy") is None:
        parser.error("haproxy is not installed: apt-get install haproxy")
    services = {port: _serve(options.bundle, port) for port in PORTS}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "haproxy.cfg"
        config.write_text(HAPROXY.format(front=FRONT, one=PORTS[0], two=PORTS[1]))
        for port in PORTS:
            _wait(port)
        balancer = subprocess.Popen(["haproxy", "-db", "-f", str(config)])
        try:
            _wait(FRONT)
            return _measure(options, services, Path(folder) / "load")
        finally:
            balancer.terminate()
            for process in services.values():
                process.terminate()
            for process in (balancer, *services.values()):
                process.wait(60)


def _measure(
    options: argparse.Namespace, services: "dict[int, subprocess.Popen[bytes]]", out: Path
) -> int:
    load = subprocess.Popen(
        [
            *(sys.executable, "-m", "loadtest", "run", "--url", f"http://127.0.0.1:{FRONT}"),
            *("--rate", str(options.rate), "--seconds", "40", "--p99-ms", "500"),
            *("--no-ceiling", "--out", str(out)),
        ],
        stdout=subprocess.DEVNULL,
    )
    time.sleep(4)
    exits = []
    for port in PORTS:
        started = time.monotonic()
        services[port].terminate()
        code = services[port].wait(60)
        exits.append(f"port {port}: exit code {code} after {time.monotonic() - started:.1f} s")
        services[port] = _serve(options.bundle, port)
        _wait(port)
        time.sleep(
            2
        )  # haproxy checks every 0.5 s, and must see this service ready before the next ends
    under_load = load.poll() is None
    load.wait(120)
    step = json.loads((out / "result.json").read_text())["steps"][0]
    print(json.dumps({key: step[key] for key in ("rate_answered", "n_queries", "outcomes")}))
    print(json.dumps(step["latency_from_schedule_ms"]))
    print("; ".join(exits), "" if under_load else "; the load ended before the last restart")
    return 0 if set(step["outcomes"]) == {"ok"} and under_load else 1


def _serve(bundle: Path, port: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "service", "--bundle", str(bundle), "--port", str(port)]
    return subprocess.Popen([*command, "--device", "cpu", "--log-level", "error"])


def _wait(port: int) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
                return
        except (OSError, urllib.error.HTTPError):
            time.sleep(0.1)
    raise SystemExit(f"port {port} did not become ready within a minute")


if __name__ == "__main__":
    sys.exit(main())
