"""How much of the encoder's speed do clients of the service get?

    python -m tests.bench.encoder_share --bundle var/bundles/gutenberg-best --connections 1 32

Serves a bundle on one core with one lane. A client on another core sends texts of about 16 tokens
in a closed loop to /v1/embed and to /v1/recommend. Then the server's core tokenizes and encodes the
same texts in process, in batches of the size that the service's metrics report. The two take turns
within one run. Prints the texts a second of both and their ratio. At one connection it also prints
by how much the service's p50 exceeds the time of tokenizer, encoder and index in process. Linux
only.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from service.core.engine import Engine
from service.core.types import Query
from tests.bench.web_overhead import Client, Target, wait_until_up

WORDS = tuple(
    word
    for line in (
        "history whale captain garden music science river mountain letter kingdom winter travel",
        "poem stories children ancient modern island teacher doctor painter railway church village",
    )
    for word in line.split()
)
PORT = 18471


def main() -> int:
    """Serve, compare each route at each number of connections, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--server-cpu", type=int, default=0)
    parser.add_argument("--client-cpu", type=int, default=max(os.sched_getaffinity(0)))
    options = parser.parse_args()
    engine = Engine.open(options.bundle, device="cpu")
    texts = [text_of(engine, i) for i in range(512)]
    command = [sys.executable, "-m", "service", "--bundle", str(options.bundle)]
    command += ["--port", str(PORT), "--device", "cpu", "--lanes", "1", "--log-level", "error"]
    server = subprocess.Popen(["taskset", "-c", str(options.server_cpu), *command])
    try:
        wait_until_up(PORT)
        for path, field in (("/v1/embed", "input"), ("/v1/recommend", "query")):
            for connections in options.connections:
                _compare(options, engine, texts, path, field, connections)
    finally:
        server.terminate()
        server.wait(60)
    return 0


def text_of(engine: Engine, number: int) -> str:
    """A text of at least 16 tokens, made of words that `number` picks."""
    words: list[str] = []
    while True:
        words.append(WORDS[(number * 7 + len(words) * (number % 11 + 1)) % len(WORDS)])
        if len(engine.tokenizer.tokenize([" ".join(words)])[0]) >= 16:
            return " ".join(words)


def _compare(
    options: argparse.Namespace,
    engine: Engine,
    texts: list[str],
    path: str,
    field: str,
    connections: int,
) -> None:
    target = Target(path, PORT, [], _requests(path, field, texts))
    served_rates, own_rates, latencies = [], [], []
    for _ in range(options.rounds):
        os.sched_setaffinity(0, {options.client_cpu})
        with Client(target, connections) as client:
            client.run(0.3)
            before = _batches()
            round_latencies = client.run(options.seconds)
        n_batches, n_texts = (after - b for after, b in zip(_batches(), before, strict=True))
        size = max(1, round(n_texts / n_batches))
        served_rates.append(len(round_latencies) / options.seconds)
        latencies += round_latencies
        os.sched_setaffinity(0, {options.server_cpu})
        own_rates.append(
            _in_process(engine, texts, size, options.seconds / 2, searching=field == "query")
        )
    ratio = statistics.median(s / o for s, o in zip(served_rates, own_rates, strict=True))
    line = (
        f"{path}, {connections} connections, batches of {size}: "
        f"{statistics.median(served_rates):.0f} texts/s served, "
        f"{statistics.median(own_rates):.0f} in process, ratio {ratio:.2f}"
    )
    if connections == 1:
        added_ms = statistics.median(latencies) * 1e3 - 1e3 / statistics.median(own_rates)
        line += f", p50 {statistics.median(latencies) * 1e3:.2f} ms: {added_ms:.2f} ms added"
    print(line, flush=True)


def _in_process(
    engine: Engine, texts: list[str], size: int, seconds: float, *, searching: bool
) -> float:
    """Texts a second of tokenizer and encoder, and of the index if `searching`."""
    manifest = engine.manifest
    k = manifest.defaults.k if searching else 0
    n_texts, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        batch = [texts[(n_texts + i) % len(texts)] for i in range(size)]
        engine.predict([Query(text, k, manifest.defaults.effort) for text in batch])
        n_texts += size
    return n_texts / (time.perf_counter() - started)


def _requests(path: str, field: str, texts: list[str]):
    numbers = itertools.count()

    def request(_: str) -> bytes:
        body = json.dumps({field: texts[next(numbers) % len(texts)]}).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        return head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body

    return request


def _batches() -> tuple[float, float]:
    """Number of batches that the service has computed, and of the texts in them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if line.startswith("astrolabe_batch_q"))
    count, total = "astrolabe_batch_queries_count", "astrolabe_batch_queries_sum"
    return float(values[count]), float(values[total])


if __name__ == "__main__":
    sys.exit(main())
