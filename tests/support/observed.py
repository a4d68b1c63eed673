"""A running service that is watched from outside: its log, its metrics, and clients that ask on."""

import http.client
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.bench.workers_memory import children
from tests.support.machine import as_ordinary_user
from tests.support.processes import ServiceProcess, service_process

KEY: Final = "admin"
CLIENTS: Final = 2
ASK_EVERY_S: Final = 0.03
"""Pause of a client between two requests: short enough to meet a fault of a moment."""
ANSWER_S: Final = 15.0
"""No answer takes longer, or it counts as none."""
OLD_S: Final = 10.5
"""A worker this old does not count as one that failed at its start (`supervisor.FAST_S`)."""

Answer = tuple[int, dict[str, Any]]


class Observed:
    """A service in several processes, everything that it logged, and what clients saw of it."""

    def __init__(self, service: ServiceProcess, clients: int) -> None:
        self.port = service.port
        self.master = service.process.pid
        self.entries: list[tuple[float, dict[str, Any]]] = []
        self.outcomes: Counter[str] = Counter()
        self._stderr = service.process.stderr
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._read_log, daemon=True)]
        self._threads += [threading.Thread(target=self._ask_on) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    @property
    def workers(self) -> list[int]:
        """Process ids of the workers, the oldest first, which is the order of proc(5)."""
        return children(self.master)

    def old_worker(self) -> int:
        """The oldest worker, once its death no longer counts as that of a failed start."""
        pid = self.workers[0]
        while _age_s(pid) < OLD_S:
            time.sleep(0.1)
        return pid

    def stop(self) -> None:
        """Let the clients end, and read the log to its end, which comes with the last process."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def ask(self, method: str, path: str, body: object = None, timeout_ms: int = 10_000) -> Answer:
        """Status and body of one request on a new connection, with the admin key."""
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        headers["x-request-timeout-ms"] = str(timeout_ms)
        return request(self.port, method, path, body, headers)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; raises OSError."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        try:
            connection.request("GET", "/metrics")
            page = connection.getresponse().read().decode()
        finally:
            connection.close()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [line.rpartition(" ") for line in page.splitlines()]
        return sum(
            float(value)
            for series, _, value in lines
            if series.partition("{")[0] == name and all(each in series for each in wanted)
        )

    def logged(self, since_s: float, **members: object) -> bool:
        """Whether an entry since a moment (`time.monotonic`) has these members."""
        return any(
            at_s >= since_s and members.items() <= entry.items() for at_s, entry in self.entries
        )

    def everywhere(self, path: str, good: Callable[[Answer], bool], times: int = 10) -> bool:
        """Whether so many new connections, which reach all workers, get a good answer."""
        return all(good(self.ask("GET", path)) for _ in range(times))

    def _read_log(self) -> None:
        assert self._stderr is not None
        for line in self._stderr:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"message": line.rstrip()}
            self.entries.append((time.monotonic(), entry))

    def _ask_on(self) -> None:
        body = {"query": "the white whale", "k": 3}
        headers = {"content-type": "application/json"}
        while not self._stop.wait(ASK_EVERY_S):
            began_s = time.monotonic()
            try:
                status, _ = request(self.port, "POST", "/v1/recommend", body, headers)
                self.outcomes["answered" if status == 200 else f"status {status}"] += 1
            except (OSError, http.client.HTTPException):
                self.outcomes["broken"] += 1
            if time.monotonic() - began_s > 1.0:
                self.outcomes["over 1 s"] += 1


def request(port: int, method: str, path: str, body: object, headers: dict[str, str]) -> Answer:
    """One request on a connection of its own; raises OSError, HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if content else {}
    finally:
        connection.close()


def wait_until(condition: Callable[[], bool], seconds: float) -> float | None:
    """The seconds until the condition held; None where it did not in time."""
    began_s = time.monotonic()
    while time.monotonic() < began_s + seconds:
        try:
            if condition():
                return time.monotonic() - began_s
        except (OSError, http.client.HTTPException):
            pass  # a worker went, or has no descriptor for the connection
        time.sleep(0.1)
    return None


def _age_s(pid: int) -> float:
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    up_s = float(Path("/proc/uptime").read_text().split()[0])
    return up_s - ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def observed(
    bundle: Path, *arguments: str, workers: int = 2, clients: int = CLIENTS
) -> Iterator[Observed]:
    """Serve in so many workers, for which permissions hold; so many clients ask all the time."""
    fixed = ("--workers", str(workers), "--admin-key", KEY, "--drain-delay-s", "0")
    fixed += ("--device", "cpu", "--lanes", "1")
    with service_process(bundle, *fixed, *arguments, preexec_fn=as_ordinary_user) as service:
        for _ in range(workers - 1):
            service.wait_for("serving")
        watched = Observed(service, clients)
        try:
            yield watched
        finally:
            service.process.terminate()
            watched.stop()
