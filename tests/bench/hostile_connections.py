"""What do other clients notice while hostile connections are open?

    python -m tests.bench.hostile_connections [--bundle PATH] [--seconds 30] [--only NAME ...]

For each row of `tests/support/hostile_rows.py` without an end or without haste, the script asks
`/v1/recommend` 200 times a second, first alone and then while one such client runs, which begins
anew whenever the service ends its connection. It prints both p99s, their ratio, and by how much the
service's memory grew. At the end, for each row again, it opens as many hostile connections as the
service allows and measures how long another client is kept out. Linux only.
"""

import argparse
import asyncio
import contextlib
import itertools
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.hostile_http import Case, Endless
from tests.support.hostile_rows import ENDLESS_ONES, SLOW_ONES
from tests.support.processes import ServiceProcess, service_process
from tests.support.raw_http import recommend
from tests.support.tiny_bundle import write_tiny_bundle

RATE_PER_S = 200
N_HOSTILE = 200
GIVE_UP_S = 120.0
START_S = 5.0
"""The hostile process has started by then, or its connections end as fast as they begin."""
SETTINGS = ("--max-connections", str(N_HOSTILE), "--log-requests", "none")


async def ask(port: int, seconds: float) -> list[float]:
    """Ask at `RATE_PER_S` on kept connections; the seconds that each answer took from its due."""
    loop = asyncio.get_running_loop()
    waits: list[float] = []
    free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    for _ in range(8):
        free.put_nowait(await asyncio.open_connection("127.0.0.1", port))

    async def one(due_s: float) -> None:
        reader, writer = await free.get()
        writer.write(recommend("the white whale"))
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        waits.append(loop.time() - due_s)
        free.put_nowait((reader, writer))

    began_s = loop.time()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(seconds * RATE_PER_S)):
            due_s = began_s + number / RATE_PER_S
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            tasks.create_task(one(due_s))
    while not free.empty():
        free.get_nowait()[1].close()
    return sorted(waits)


async def be_hostile_once(port: int, case: Case) -> None:
    """One connection of the row's client. It sends as long as it can, whatever it is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_send(writer, case))
            both.create_task(_hear(reader))
    finally:
        writer.close()


async def _hear(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(1 << 16):
            pass


async def _send(writer: asyncio.StreamWriter, case: Case) -> None:
    with contextlib.suppress(OSError):
        for piece in case.sends:
            if isinstance(piece, bytes):
                writer.write(piece)
            elif isinstance(piece, Endless):
                while True:
                    writer.write(piece.piece)
                    await writer.drain()
                    await asyncio.sleep(max(piece.every_s * 20, 0.0))
            await writer.drain()


def run_hostile(port: int, case: Case, n_connections: int, again: bool) -> None:
    """The hostile process. It leaves the processor to the other client, which is measured."""

    async def one() -> None:
        for _ in itertools.repeat(None) if again else [None]:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await be_hostile_once(port, case)
            await asyncio.sleep(0)

    async def all_of_them() -> None:
        await asyncio.gather(*(one() for _ in range(n_connections)))

    os.nice(10)
    asyncio.run(all_of_them())


@contextlib.contextmanager
def hostile(port: int, case: Case, n_connections: int, again: bool) -> Iterator[None]:
    """Run so many of the row's clients in a process; each begins anew when it ends, or not."""
    arguments = (port, case, n_connections, again)
    process = multiprocessing.get_context("spawn").Process(target=run_hostile, args=arguments)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


async def is_served(port: int) -> bool:
    """Whether a new client gets an answer now."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
    except OSError:
        return False
    return answer.startswith(b"HTTP/1.1 200")


async def kept_out_s(port: int, case: Case) -> float:
    """How long another client is refused by `N_HOSTILE` clients of this row, each once."""
    with hostile(port, case, N_HOSTILE, again=False):
        began_s = time.perf_counter()
        while await is_served(port) and time.perf_counter() < began_s + START_S:
            await asyncio.sleep(0.01)
        began_s = time.perf_counter()
        while not await is_served(port) and time.perf_counter() < began_s + GIVE_UP_S:
            await asyncio.sleep(0.05)
        return time.perf_counter() - began_s


def memory_mb(service: ServiceProcess) -> float:
    """Resident memory of the service, in MB."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


async def measure(service: ServiceProcess, cases: dict[str, Case], seconds: float) -> None:
    """Print a line for each row."""
    await ask(service.port, 2.0)
    print("client | p99 alone ms | p99 beside it ms | ratio | memory MB | others kept out s")
    for name, case in cases.items():
        alone = await ask(service.port, seconds)
        before_mb = memory_mb(service)
        with hostile(service.port, case, 1, again=True):
            beside = await ask(service.port, seconds)
            grown_mb = memory_mb(service) - before_mb
        out_s = await kept_out_s(service.port, case)
        p99s = [1e3 * waits[int(0.99 * len(waits))] for waits in (alone, beside)]
        print(
            f"{name} | {p99s[0]:.1f} | {p99s[1]:.1f} | {p99s[1] / p99s[0]:.2f} | "
            f"{grown_mb:+.1f} | {out_s:.1f}",
            flush=True,
        )


def main() -> int:
    """Measure every row against one service."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    tables = (("endless", ENDLESS_ONES), ("slow", SLOW_ONES))
    cases = {f"{title}: {case.name}": case for title, table in tables for case in table}
    with tempfile.TemporaryDirectory() as scratch:
        bundle = args.bundle or write_tiny_bundle(Path(scratch) / "bundle")
        with service_process(bundle, *SETTINGS) as service:
            asyncio.run(
                measure(service, {name: cases[name] for name in args.only or cases}, args.seconds)
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
