"""The service as a process of its own, as an operator starts it."""

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.metrics import samples

START_S = 60.0
"""No process takes longer to start, to refuse to, or to end."""


def command(*arguments: str) -> list[str]:
    """The command line of the service."""
    return [sys.executable, "-m", "service", *arguments]


def run_service(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the service until it ends by itself."""
    return subprocess.run(
        command(*arguments),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=START_S,
    )


class ServiceProcess:
    """A running service and the log entries that were read from it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.entries: list[dict[str, object]] = []
        self.wait_for("serving")
        self.port = int(str(self.entries[-1]["url"]).rpartition(":")[2])

    def ask(self, method: str, path: str, body: str | None = None) -> int:
        """Status of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_S)
        try:
            headers = {"content-type": "application/json"} if body else {}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def scrape(self, port: int | None = None) -> dict[str, float]:
        """Series and values of /metrics."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=START_S)
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
        connection.close()
        return samples(page)

    def wait_for(self, message: str) -> None:
        """Return once it has logged this message anew."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.entries.append(json.loads(line))
            if self.entries[-1]["message"] == message:
                return
        raise AssertionError(f"never said {message!r}: {self.entries}")


@contextmanager
def service_process(
    bundle: Path, *arguments: str, preexec_fn: Callable[[], None] | None = None
) -> Iterator[ServiceProcess]:
    """Serve a bundle on a free port in a process; it is killed at the end.

    `preexec_fn` runs in the process before the service starts.
    """
    process = subprocess.Popen(
        command("--bundle", str(bundle), "--port", "0", *arguments),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec_fn,
    )
    try:
        yield ServiceProcess(process)
    finally:
        process.kill()
        process.communicate()
