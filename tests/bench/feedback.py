"""What does feedback cost, and what does a kill lose?

    python -m tests.bench.feedback [--bundle BUNDLE] [--queries 500] [--events 5000] \\
        [--seconds 5] [--turns 6] [--kills 10]

Sends queries at a fixed rate, with and without events beside them, in turns. Prints the latencies
of the queries, and the service's CPU for each event: what the turns with events took more. Then it
sends events, kills the service (SIGKILL), starts it anew, stops it, and counts in the files what it
had acknowledged: nothing older than a second before the kill may be missing. The machine's clock
counts other work too, so compare turns of one run.
"""

import argparse
import asyncio
import json
import os
import signal
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq

from tests.support.processes import ServiceProcess, service_process
from tests.support.tiny_bundle import WORDS, write_tiny_bundle

EVENTS_A_CALL = 100
WINDOW_S = 1.0
CONNECTIONS = 8


def main() -> int:
    """Print a table; returns 1 if a kill lost more than it may."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--queries", type=int, default=500, help="a second")
    parser.add_argument("--events", type=int, default=5000, help="a second")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--kills", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = args.bundle or write_tiny_bundle(folder / "bundle")
        load(bundle, folder / "load", args)
        return max((killed(bundle, folder / f"kill{i}", i) for i in range(args.kills)), default=0)


def load(bundle: Path, folder: Path, args: argparse.Namespace) -> None:
    """Turns without and with events."""
    taken: dict[bool, list[tuple[float, float, float]]] = {False: [], True: []}
    options = ("--feedback-dir", str(folder), "--log-requests", "none")
    with service_process(bundle, *options) as process:
        for turn in range(args.turns + 1):
            for with_events in (False, True):
                before = cpu_s(process)
                rate = args.events if with_events else 0
                times = asyncio.run(one_turn(process.port, args.queries, rate, args.seconds))
                p50, p99 = 1e3 * np.percentile(times, [50, 99])
                if turn:  # the first one warms up
                    taken[with_events].append((p50, p99, cpu_s(process) - before))
    for with_events, rows in taken.items():
        p50, p99, cpu = np.median(rows, axis=0)
        print(
            f"{'with' if with_events else 'without':8} events: p50 {p50:.2f} ms, p99 {p99:.2f} ms, "
            f"CPU {cpu / args.seconds:.3f} s a second (medians of {len(rows)} turns)"
        )
    p50, p99, cpu = np.median(np.array(taken[True]) / np.array(taken[False]), axis=0)
    extra = np.median(np.array(taken[True])[:, 2] - np.array(taken[False])[:, 2])
    per_event = 1e6 * extra / (args.events * args.seconds)
    print(
        f"ratios: p50 {p50:.2f}, p99 {p99:.2f}, CPU {cpu:.2f}; {per_event:.1f} us of CPU an event"
    )


async def one_turn(port: int, queries: int, events: int, seconds: float) -> list[float]:
    """Seconds that each query took from when it was due."""
    texts = [f"GET /v1/recommend?q={word} HTTP/1.1\r\nhost: x\r\n\r\n".encode() for word in WORDS]
    body = json.dumps({"events": some_events(0, EVENTS_A_CALL)}).encode()
    head = "POST /v1/feedback HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    call = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    times, _ = await asyncio.gather(
        paced(port, texts, queries, seconds), paced(port, [call], events / EVENTS_A_CALL, seconds)
    )
    return times


async def paced(port: int, requests: list[bytes], rate: float, seconds: float) -> list[float]:
    """Send requests at this rate over a few connections; seconds from due to answered of each.

    Bare connections, because a client library would take more of the machine than the service.
    """
    start, numbers, times = time.perf_counter(), iter(range(int(rate * seconds))), []

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for i in numbers:
            due = start + i / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            writer.write(requests[i % len(requests)])
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r")[0]))
            times.append(time.perf_counter() - due)
            assert head[9:12] in (b"200", b"202"), head
        writer.close()

    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return times


def killed(bundle: Path, folder: Path, turn: int) -> int:
    """Kill a service that takes events; returns 1 if more than the window is lost."""
    options = ("--feedback-dir", str(folder), "--log-requests", "none")
    acknowledged: list[float] = []
    with service_process(bundle, *options) as process:
        url = f"http://127.0.0.1:{process.port}/v1/feedback"
        end = time.perf_counter() + 2.0 + 0.13 * turn  # kills at different places of the window
        with httpx.Client() as client:
            while time.perf_counter() < end:
                events = some_events(len(acknowledged), EVENTS_A_CALL)
                client.post(url, json={"events": events}).raise_for_status()
                acknowledged += [time.perf_counter()] * EVENTS_A_CALL
        os.kill(process.process.pid, signal.SIGKILL)
        kill_s = time.perf_counter()
    with service_process(bundle, *options):
        pass
    files = sorted(folder.glob("events-*.parquet"))
    stored = [round(v) for f in files for v in pq.read_table(f)["value"].to_pylist()]
    lost = sorted(set(range(len(acknowledged))) - set(stored))
    oldest = max((kill_s - acknowledged[i] for i in lost), default=0.0)
    left = len(list(folder.glob("*.part")))
    print(
        f"kill {turn}: {len(acknowledged):,} acknowledged, {len(lost):,} lost, the oldest "
        f"{oldest:.2f} s before the kill; {len(stored) - len(set(stored))} twice, {left} .part left"
    )
    return int(oldest > WINDOW_S or len(stored) != len(set(stored)) or left > 0)


def some_events(start: int, n: int) -> list[dict[str, object]]:
    """Events, each with its number as value."""
    return [
        {"text": "white whale", "label": f"L{i % 50:03d}", "event": "clicked", "value": float(i)}
        for i in range(start, start + n)
    ]


def cpu_s(process: ServiceProcess) -> float:
    """CPU seconds of the service so far."""
    fields = Path(f"/proc/{process.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    raise SystemExit(main())
