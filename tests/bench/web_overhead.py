"""What does a request with one query cost, in the service and in a trivial FastAPI handler?

    python -m tests.bench.web_overhead --bundle PATH [--annif PROJECT_FOLDER --annif-python PYTHON]

Both servers run under uvicorn on one core and take turns within one run. One raw client sends the
same bytes to both. The figure is requests per CPU-second of the server process (user and system
time from /proc), so other work on the machine hardly matters. The ratio of the two says how much
validation, batching, encoding, search and telemetry add to the web layer.

With `--annif` the script also measures Annif's own REST route in one uvicorn process. Annif needs
an environment of its own, and a folder that holds projects.toml and data/. Linux only.
"""

import argparse
import os
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

QUERIES = ("the white whale", "a history of rome", "star and moon", "rose garden", "old songs")
READY_TIMEOUT_S = 60.0
WARM_UP_S = 0.5


@dataclass
class Target:
    """A server, and its measurements by the number of connections.

    `rounds` holds (requests, cpu_s) of each round, `latencies_s` the latency of each request.
    """

    name: str
    port: int
    command: list[str]
    request: Callable[[str], bytes]
    folder: Path | None = None
    rounds: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    latencies_s: dict[int, list[float]] = field(default_factory=dict)

    def per_cpu_second(self, connections: int) -> float:
        """Median over the rounds of requests per CPU-second."""
        return statistics.median(n / cpu_s for n, cpu_s in self.rounds[connections])

    def p50_ms(self, connections: int) -> float:
        """Median latency at the client, in milliseconds."""
        return statistics.median(self.latencies_s[connections]) * 1e3


def main() -> int:
    """Measure and print one line for each number of connections."""
    arguments = _arguments()
    if arguments.serve_trivial:
        return _serve_trivial(arguments.serve_trivial)
    targets = [_trivial_target(), _service_target(arguments.bundle, arguments.server_cpu)]
    if arguments.annif:
        targets.append(_annif_target(arguments.annif, arguments.annif_python))
    servers = [_start(target, arguments.server_cpu) for target in targets]
    try:
        os.sched_setaffinity(0, {arguments.client_cpu})
        for target in targets:
            wait_until_up(target.port)
            _measure(target, os.getpid(), 1, 0.1)  # the first answer may load a model
            target.rounds.clear()
            target.latencies_s.clear()
        for _ in range(arguments.rounds):
            for connections in arguments.connections:
                for target, server in zip(targets, servers, strict=True):
                    _measure(target, server.pid, connections, arguments.seconds)
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait(READY_TIMEOUT_S)
    _report(targets, arguments.connections)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("var/bundles"))
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--server-cpu", type=int, default=0)
    parser.add_argument("--client-cpu", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--annif", type=Path, help="folder with projects.toml and data/")
    parser.add_argument("--annif-python", type=Path, help="python that has Annif installed")
    parser.add_argument("--serve-trivial", type=int, metavar="PORT", help=argparse.SUPPRESS)
    return parser.parse_args()


def _serve_trivial(port: int) -> int:
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Request(BaseModel):
        query: str
        k: int = 10

    class Label(BaseModel):
        id: str
        text: str
        score: float

    class Answer(BaseModel):
        labels: list[Label]

    app = FastAPI()

    @app.post("/v1/recommend")
    async def recommend(request: Request) -> Answer:
        return Answer(
            labels=[
                Label(id=f"L{i:03d}", text=f"label number {i}", score=1 / (i + 1))
                for i in range(request.k)
            ]
        )

    uvicorn.run(
        app, port=port, http="httptools", loop="uvloop", access_log=False, log_level="error"
    )
    return 0


def _trivial_target() -> Target:
    port = _free_port()
    command = [sys.executable, "-m", "tests.bench.web_overhead", "--serve-trivial", str(port)]
    return Target("trivial FastAPI handler", port, command, _as_json)


def _service_target(bundle: Path, cpu: int) -> Target:
    port = _free_port()
    command = [sys.executable, "-m", "service", "--bundle", str(bundle), "--port", str(port)]
    command += ["--drain-delay-s", "0", "--log-level", "warning"]
    return Target(f"service on core {cpu}", port, command, _as_json)


def _annif_target(folder: Path, python: Path) -> Target:
    port = _free_port()
    command = [str(python.absolute()), "-m", "uvicorn", "--factory", "annif:create_cx_app"]
    command += ["--port", str(port), "--no-access-log", "--log-level", "error"]
    return Target("Annif", port, command, _as_annif, folder)


def _as_json(text: str) -> bytes:
    return _post("/v1/recommend", "application/json", f'{{"query":"{text}","k":10}}')


def _as_annif(text: str) -> bytes:
    body = f"text={text.replace(' ', '+')}&limit=10"
    return _post("/v1/projects/gutenberg/suggest", "application/x-www-form-urlencoded", body)


def _post(path: str, kind: str, body: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: {kind}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(target: Target, cpu: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "ANNIF_DATADIR": "data"} if target.folder else None
    command = ["taskset", "-c", str(cpu), *target.command]
    return subprocess.Popen(command, cwd=target.folder, env=environment)


def wait_until_up(port: int) -> None:
    """Return once something listens on the port; ends the script after READY_TIMEOUT_S."""
    end = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


def _measure(target: Target, pid: int, connections: int, seconds: float) -> None:
    with Client(target, connections) as client:
        client.run(WARM_UP_S)
        before = _cpu_s(pid)
        latencies = client.run(seconds)
        cpu_s = _cpu_s(pid) - before
    target.rounds.setdefault(connections, []).append((len(latencies), cpu_s))
    target.latencies_s.setdefault(connections, []).extend(latencies)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Client:
    """A closed loop over raw sockets: each connection waits for an answer, then sends again."""

    def __init__(self, target: Target, connections: int) -> None:
        self._request = target.request
        self._selector = selectors.DefaultSelector()
        self._sent = 0
        for _ in range(connections):
            connection = socket.create_connection(("127.0.0.1", target.port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(connection, selectors.EVENT_READ)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()

    def run(self, seconds: float) -> list[float]:
        """Send for this long; return the latency of each request in seconds."""
        latencies: list[float] = []
        started: dict[socket.socket, float] = {}
        for key in self._selector.get_map().values():
            started[key.fileobj] = self._send(key.fileobj)
        end = time.perf_counter() + seconds
        while started:
            for key, _ in self._selector.select(10):
                connection = key.fileobj
                _read_answer(connection)
                now = time.perf_counter()
                latencies.append(now - started.pop(connection))
                if now < end:
                    started[connection] = self._send(connection)
        return latencies

    def _send(self, connection: socket.socket) -> float:
        text = QUERIES[self._sent % len(QUERIES)]
        self._sent += 1
        connection.sendall(self._request(text))
        return time.perf_counter()


def _read_answer(connection: socket.socket) -> None:
    data = connection.recv(65536)
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"not a 200: {data[:300]!r}")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    missing = length - len(body)
    while missing > 0:
        missing -= len(connection.recv(missing))


def _report(targets: list[Target], connections: list[int]) -> None:
    trivial, *others = targets
    for count in connections:
        base = trivial.per_cpu_second(count)
        parts = [f"{trivial.name} {base:.0f} req/CPU-s (p50 {trivial.p50_ms(count):.2f} ms)"]
        parts += [
            f"{other.name} {other.per_cpu_second(count):.0f} req/CPU-s "
            f"(p50 {other.p50_ms(count):.2f} ms), ratio {other.per_cpu_second(count) / base:.3f}"
            for other in others
        ]
        sys.stdout.write(f"{count:3d} connections: {'; '.join(parts)}\n")


if __name__ == "__main__":
    sys.exit(main())
