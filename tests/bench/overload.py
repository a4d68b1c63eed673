"""What happens to the service at many times its capacity, and how soon does it recover?

    python -m tests.bench.overload --bundle PATH --server-cpus 0 --client-cpus 1 [-- FLAG ...]

Starts `python -m service` and finds its peak: the load tester raises an open-loop rate until the
answers a second rise no more. Then it offers a multiple of the peak and reports the answers a
second against the peak, the latency of answers and of refusals, and the memory of the server. A
probe sends one query after another all the while. The report says how long after the last query of
the overload the probe got prompt answers again.

Give client and server CPUs of their own. In an overload the client works several times as hard, and
would take the server's. Linux only.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from loadtest.client.outcomes import OK, count_outcomes
from loadtest.plan import StepPlan
from loadtest.result import StepResult
from loadtest.samples import SAMPLES_FILE, Samples
from loadtest.step import run_step

READY_TIMEOUT_S = 60.0
PROBE_EVERY_S = 0.02
PROMPT_S = 0.05
"""A probe with a slower answer counts as not yet recovered. A choice."""
GROWTH = 1.1
"""The goodput counts as flat unless it rises above this many times the best so far. A choice, above
the noise of short steps."""
STEP = 1.4
"""Each offered rate by the one before it."""
REFUSED = 429


def main() -> int:
    """Find the peak, offer the overload, and print what was measured."""
    options = _options()
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "service", "--bundle", str(options.bundle)]
    command += ["--port", str(port), "--drain-delay-s", "0", *options.service]
    if options.server_cpus:
        command = ["taskset", "-c", options.server_cpus, *command]
    if options.client_cpus:
        os.sched_setaffinity(0, {int(number) for number in options.client_cpus.split(",")})
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        log = (folder / "service.log").open("wb")
        server = subprocess.Popen(command, stderr=log)
        try:
            _wait_until_ready(url)
            plan = StepPlan(
                url=url,
                rate=options.start_rate,
                seconds=options.seconds_per_step,
                p99_ms=options.timeout_ms,
                timeout_ms=options.timeout_ms,
                connections=options.connections,
            )
            peak = _peak(plan, folder)
            _overload(plan, peak, options, folder, server.pid)
        finally:
            server.terminate()
            server.wait(READY_TIMEOUT_S)
        print(f"service log: {(folder / 'service.log').stat().st_size / 1024:.0f} KiB")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("var/bundles"))
    parser.add_argument("--factor", type=float, default=5.0, help="offered rate by the peak")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the overload")
    parser.add_argument("--timeout-ms", type=float, default=500.0, help="deadline of each query")
    parser.add_argument("--connections", type=int, default=3000)
    parser.add_argument("--start-rate", type=float, default=500.0)
    parser.add_argument("--seconds-per-step", type=float, default=4.0)
    parser.add_argument("--out", type=Path, help="keep the load tester's files in this folder")
    parser.add_argument("--server-cpus", help="CPUs of the server, such as 0 or 0,1")
    parser.add_argument("--client-cpus", help="CPUs of the client")
    parser.add_argument("service", nargs="*", help="flags of the service")
    return parser.parse_args()


def _peak(plan: StepPlan, folder: Path) -> float:
    """Most answers a second; the rate rises until the goodput was flat twice in a row."""
    peak, rate, flat = 0.0, plan.rate, 0
    while flat < 2:
        step = run_step(_at(plan, rate, plan.seconds), folder / f"rate-{rate:.0f}")
        _say(f"{rate:8.0f}/s offered", step, folder)
        goodput = _goodput(folder / step.name)
        flat = 0 if goodput > GROWTH * peak else flat + 1
        peak, rate = max(peak, goodput), rate * STEP
    return peak


def _at(plan: StepPlan, rate: float, seconds: float) -> StepPlan:
    return StepPlan(**{**_fields(plan), "rate": rate, "seconds": seconds})


def _fields(plan: StepPlan) -> dict[str, object]:
    return {name: getattr(plan, name) for name in StepPlan.__dataclass_fields__}


def _overload(
    plan: StepPlan, peak: float, options: argparse.Namespace, folder: Path, pid: int
) -> None:
    with Probe(plan.url, pid) as probe:
        offered = _at(plan, options.factor * peak, options.seconds)
        step = run_step(offered, folder / "overload")
        time.sleep(1.0)
    _say(f"{offered.rate:8.0f}/s offered", step, folder)
    samples = Samples.load(folder / "overload" / SAMPLES_FILE)
    goodput = _goodput(folder / "overload")
    ended_s = _began_s(folder / "overload") + float(samples.scheduled_s[-1])
    sent_late = samples.from_schedule_s - samples.from_send_s
    print(
        f"goodput {goodput:.0f}/s of a peak of {peak:.0f}/s: {100 * goodput / peak:.0f} %\n"
        f"answered, from send: {_quantiles(samples.from_send_s[samples.ok])}\n"
        f"answered, from schedule: {_quantiles(samples.from_schedule_s[samples.ok])}\n"
        f"refused, from send: {_quantiles(samples.from_send_s[samples.code == REFUSED])}\n"
        f"client's own delay: {_quantiles(sent_late[samples.ok])}\n"
        f"{probe.report(ended_s)}"
    )
    _print_metrics(plan.url)


def _say(what: str, step: StepResult, folder: Path) -> None:
    goodput = _goodput(folder / step.name)
    print(
        f"{what}: {goodput:.0f}/s answered, {step.outcomes}, client CPU "
        f"{step.client_cpu_s:.1f} s, {step.connections_opened} connections",
        flush=True,
    )


def _goodput(folder: Path) -> float:
    """Answers a second until the last query was due; later answers do not count."""
    samples = Samples.load(folder / SAMPLES_FILE)
    end_s = float(samples.scheduled_s[-1])
    answered_s = samples.scheduled_s + samples.from_schedule_s
    return float((samples.ok & (answered_s <= end_s)).sum()) / end_s


def _quantiles(seconds: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> str:
    if not seconds.size:
        return "none"
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1e3
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {seconds.max() * 1e3:.1f} ms"


def _began_s(folder: Path) -> float:
    """Wall-clock time at which LoadGen began to issue queries, from its own log."""
    for line in (folder / "mlperf_log_detail.txt").read_text().splitlines():
        entry = json.loads(line.removeprefix(":::MLLOG "))
        if entry["key"] == "power_begin":
            moment = datetime.strptime(entry["value"], "%m-%d-%Y %H:%M:%S.%f")
            return moment.replace(tzinfo=UTC).timestamp()
    raise SystemExit(f"{folder}: LoadGen's log does not say when it began")


class Probe:
    """Sends one query after another on new connections beside the load, and samples the memory."""

    def __init__(self, url: str, pid: int) -> None:
        self._url = f"{url}/v1/recommend?q=moby+dick"
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._answers: list[tuple[float, int, float]] = []
        self._memory: list[tuple[float, float]] = []

    def __enter__(self) -> "Probe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def report(self, ended_s: float) -> str:
        """The time to recovery after `ended_s`, and the server's memory over time."""
        after = [answer for answer in self._answers if answer[0] + answer[2] > ended_s]
        slow = [
            end for at, code, took in after if code != OK or took > PROMPT_S for end in [at + took]
        ]
        recovery_s = max([0.0, *(end - ended_s for end in slow)])
        during = [code for at, code, _ in self._answers if at < ended_s]
        memory = [mib for _, mib in self._memory]
        third = max(1, len(memory) // 3)
        return (
            f"probes during the overload: {count_outcomes(during)}\n"
            f"recovered {recovery_s:.2f} s after the last query ({len(after)} probes)\n"
            f"server memory: {memory[0]:.0f} MiB before, {max(memory):.0f} at most, first third "
            f"{np.median(memory[:third]):.0f}, last third {np.median(memory[-third:]):.0f}"
        )

    def _run(self) -> None:
        while not self._stop.wait(PROBE_EVERY_S):
            began_s = time.time()
            try:
                with urllib.request.urlopen(self._url, timeout=10) as answer:
                    answer.read()
                    code = int(answer.status)
            except urllib.error.HTTPError as exc:
                code = exc.code
            except OSError:
                code = 0
            self._answers.append((began_s, code, time.time() - began_s))
            self._memory.append((began_s, _resident_mib(self._pid)))


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _print_metrics(url: str) -> None:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    for line in lines:
        if re.match(r"astrolabe_(rejected|dropped)_total|process_cpu", line):
            print(line)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(url: str) -> None:
    end = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{url} does not become ready")


if __name__ == "__main__":
    sys.exit(main())
