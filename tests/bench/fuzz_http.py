"""Send many odd and broken streams of requests to a live service, and judge every answer.

    python -m tests.bench.fuzz_http --count 20000

Half of the streams are sound but unusual: random framing, splits, upgrades, trailers, and bodies
that look like requests. Their answers are known, one by one. The other half are such streams after
random changes to their bytes. They must get no more answers than they hold request lines, and one
refusal. Every refusal must be a problem document. Meanwhile a connection of its own asks `/livez`,
and must be answered within `HANG_S`. The script prints the seed of each fault, and then exits with
1.
"""

import argparse
import asyncio
import collections
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.hostile import changed_bytes
from tests.support.processes import ServiceProcess, service_process
from tests.support.tiny_bundle import write_tiny_bundle

HANG_S = 0.1
ANSWER_S = 30.0
"""Every answer that must come comes in this time."""
QUIET_S = 0.3
"""A client hears nothing for so long: a changed stream gets no further answer."""
SURPLUS_S = 0.02
"""How long a client listens for answers that it did not ask for."""
CLIENTS = 4
SETTINGS = ("--request-timeout-ms", "30000", "--log-requests", "none")
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
SNIPPETS = (
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"0\r\n\r\n", b" ", b"\t", b":", b"\x00", b"\xff"),
    *(b"content-length: 5\r\n", b"content-length: 0\r\n", b"transfer-encoding: chunked\r\n"),
    *(b"connection: upgrade\r\nupgrade: h2c\r\n", b"connection: close\r\n", b"host: y\r\n"),
    *(b"transfer-encoding: identity\r\n", b"expect: 100-continue\r\n", b";a=b", b"ffffffff"),
    *(b"HTTP/1.0", b"HTTP/2.0", b"GET / HTTP/1.1\r\n", SMUGGLED),
)  # fmt: skip


@dataclass
class Answer:
    """A final answer of the service."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


def sound_stream(rng: random.Random) -> tuple[bytes, list[int]]:
    """One to six requests in an unusual form, and the statuses of their answers."""
    parts, statuses = [], []
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        if rng.random() < 0.4:
            target, status = rng.choice(
                ((b"/livez", 200), (b"/none", 404), (b"/v1/recommend", 422))
            )
            line, body = b"GET " + target, b""
        else:
            line, body, status = b"POST /v1/recommend", b'{"query": "a whale"}', 200
            if rng.random() < 0.3:
                body, status = SMUGGLED * rng.choice((1, 50)), 400
        parts.append(_request(line, body, rng))
        statuses.append(status)
    return b"".join(parts), statuses


def _request(line: bytes, body: bytes, rng: random.Random) -> bytes:
    headers = [b"host: x", b"content-type: application/json"]
    if rng.random() < 0.2:
        headers += [b"connection: upgrade", b"upgrade: " + rng.choice((b"h2c", b"websocket"))]
    if rng.random() < 0.2:
        headers.append(b"x-pad: " + b"y" * rng.randrange(3000))
    if body and rng.random() < 0.5:
        headers.append(b"transfer-encoding: chunked")
        body = _chunked(body, rng)
    elif body:
        headers.append(b"content-length: %d" % len(body))
    rng.shuffle(headers)
    return line + b" HTTP/1.1\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + body


def _chunked(body: bytes, rng: random.Random) -> bytes:
    chunks = []
    while body:
        size = rng.randrange(1, len(body) + 1)
        extension = b";a=" + b"b" * rng.randrange(40) if rng.random() < 0.2 else b""
        chunks.append(b"%x%s\r\n%s\r\n" % (size, extension, body[:size]))
        body = body[size:]
    trailer = b"x-request-id: trailer\r\n" if rng.random() < 0.2 else b""
    return b"".join(chunks) + b"0\r\n" + trailer + b"\r\n"


async def converse(
    port: int, stream: bytes, n_answers: int | None, rng: random.Random
) -> tuple[list[Answer], bytes]:
    """Send the stream in random pieces; the answers, and what was no answer.

    `n_answers` is how many must come; None if nobody knows.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    hearing = asyncio.create_task(_hear(reader, n_answers))
    try:
        while stream and not hearing.done():
            size = rng.choice((1, 7, 100, 5000, len(stream)))
            writer.write(stream[:size])
            stream = stream[size:]
            if rng.random() < 0.3:
                await asyncio.sleep(0)
        if rng.random() < 0.2:
            writer.write_eof()
        return await hearing
    finally:
        writer.close()


async def _hear(reader: asyncio.StreamReader, n_answers: int | None) -> tuple[list[Answer], bytes]:
    rest, answers = b"", []
    try:
        while True:
            patience_s = QUIET_S
            if n_answers is not None:
                patience_s = ANSWER_S if len(answers) < n_answers else SURPLUS_S
            piece = await asyncio.wait_for(reader.read(1 << 16), patience_s)
            if not piece:
                return answers, rest
            new, rest = _answers_in(rest + piece)
            answers += new
    except (TimeoutError, ConnectionError):
        return answers, rest


def _answers_in(heard: bytes) -> tuple[list[Answer], bytes]:
    answers = []
    while heard.startswith(b"HTTP/1.1 ") and b"\r\n\r\n" in heard:
        head, _, rest = heard.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in lines)
        size = int(headers.get(b"content-length", b"0"))
        if len(rest) < size:
            break
        if not first.startswith(b"HTTP/1.1 100"):
            answers.append(Answer(int(first.split()[1]), headers, rest[:size]))
        heard = rest[size:]
    return answers, heard


def fault(answers: list[Answer], rest: bytes, stream: bytes, statuses: list[int] | None) -> str:
    """What is wrong with these answers to the stream; empty if nothing is."""
    if rest:
        return f"ends with {rest[:80]!r}"
    for answer in answers:
        if answer.headers.get(b"x-request-id") == b"trailer":
            return "took a trailer for a header"
        if answer.status >= 400 and "code" not in json.loads(answer.body):
            return f"{answer.status} without a problem document"
        if answer.status >= 500 and answer.status not in (503, 504):
            return f"{answer.status}: {answer.body[:200]!r}"
    seen = [answer.status for answer in answers]
    if statuses is not None and seen != statuses:
        return f"answers {seen} to requests that get {statuses}"
    if len(seen) > stream.count(b"HTTP/") + 1:
        return f"{len(seen)} answers to {stream.count(b'HTTP/')} request lines"
    return ""


async def fuzz(service: ServiceProcess, count: int, first_seed: int, hang_s: float) -> int:
    """Send `count` streams over `CLIENTS` connections at a time; how many faults there were."""
    seeds = iter(range(first_seed, first_seed + count))
    outcomes: collections.Counter[str] = collections.Counter()
    waits: list[float] = []
    probing = asyncio.create_task(_probe(service.port, waits))

    async def client() -> None:
        for seed in seeds:
            rng = random.Random(seed)
            expected: list[int] | None
            stream, expected = sound_stream(rng)
            if rng.random() < 0.5:
                stream, expected = changed_bytes(stream, rng, SNIPPETS), None
            n_answers = None if expected is None else len(expected)
            answers, rest = await converse(service.port, stream, n_answers, rng)
            wrong = fault(answers, rest, stream, expected)
            outcomes["FAULT" if wrong else "sound" if expected else "changed"] += 1
            outcomes.update(f"answer {answer.status}" for answer in answers)
            if wrong:
                print(f"seed {seed}: {wrong}")

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    probing.cancel()
    waits.sort()
    n_late = sum(wait_s > hang_s for wait_s in waits)
    print(f"{count} streams in {time.perf_counter() - began:.0f} s")
    for name, number in sorted(outcomes.items()):
        print(f"{number:8} {name}")
    print(
        f"another connection: {len(waits)} answers, p99 {1e3 * waits[int(0.99 * len(waits))]:.1f}, "
        f"longest {1e3 * waits[-1]:.1f} ms, {n_late} over {1e3 * hang_s:.0f} ms"
    )
    return outcomes["FAULT"] + n_late


async def _probe(port: int, waits: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while True:
        asked_s = time.perf_counter()
        writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        waits.append(time.perf_counter() - asked_s)
        await asyncio.sleep(0.005)


def main() -> int:
    """Fuzz a service of the tiny bundle; 0 if there is no fault and the service still runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--hang-s", type=float, default=HANG_S)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = write_tiny_bundle(Path(scratch) / "bundle")
        with service_process(bundle, *SETTINGS) as service:
            n_faults = asyncio.run(fuzz(service, args.count, args.first_seed, args.hang_s))
            ended = service.process.poll()
    if ended is not None:
        print(f"the service ended with {ended}")
    return int(n_faults > 0 or ended is not None)


if __name__ == "__main__":
    sys.exit(main())
