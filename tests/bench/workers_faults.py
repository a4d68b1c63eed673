"""What clients see when one of four workers is killed, and when the master is told to end.

    python -m tests.bench.workers_faults BUNDLE [--drains 1] [--new-connections]

Clients with one kept connection each, or with a new one for each request, send without pause, and
count what fails. A client whose connection breaks opens a new one: what it then sees is the next
count. With several drains, that many services are started and told to end, and none is killed.
"""

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from tests.bench.workers_memory import children, read_url

CLIENTS = 16
BODY = json.dumps({"query": "the white whale"})
JSON = {"content-type": "application/json"}


class Load:
    """Clients that send until told to stop, or until nobody listens."""

    def __init__(self, port: int, new_connections: bool) -> None:
        self.outcomes: Counter[str] = Counter()
        self._port = port
        self._headers = JSON | {"connection": "close"} if new_connections else JSON
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> Counter[str]:
        """Outcomes of every request."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self.outcomes

    def _client(self) -> None:
        while not self._stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            try:
                connection.connect()
            except OSError:
                self.outcomes["new connection refused"] += 1
                return
            self._send_on(connection)
            connection.close()

    def _send_on(self, connection: http.client.HTTPConnection) -> None:
        while not self._stop.is_set():
            try:
                connection.request("POST", "/v1/recommend", BODY, self._headers)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as exc:
                self.outcomes[f"failed: {type(exc).__name__}"] += 1
                return
            self.outcomes[f"status {answer.status}"] += 1
            if answer.getheader("connection") == "close":
                return


def main() -> None:
    """Kill one worker under load, then end the master under load; or only end masters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--drains", type=int, default=1)
    parser.add_argument("--new-connections", action="store_true")
    options = parser.parse_args()
    outcomes: Counter[str] = Counter()
    for _ in range(options.drains):
        outcomes += serve_and_end(options)
    print(f"told to end {options.drains} times:", dict(outcomes))


def serve_and_end(options: argparse.Namespace) -> Counter[str]:
    """Outcomes of all requests around the end of one service."""
    command = [sys.executable, "-m", "service", "--bundle", str(options.bundle), "--port", "0"]
    command += ["--device", "cpu", "--workers", str(options.workers), "--drain-delay-s", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        port = int(read_url(process, options.workers).rpartition(":")[2])
        reader = threading.Thread(target=drop, args=(process,), daemon=True)
        reader.start()
        if options.workers > 1 and options.drains == 1:
            load = Load(port, options.new_connections)
            time.sleep(12)  # longer than a death counts as fast
            print("killed:", dict(kill_one(process.pid, load)))
        load = Load(port, options.new_connections)
        time.sleep(2)
        told_s = time.monotonic()
        process.terminate()
        code = process.wait(60)
        print(f"told to end: exit code {code} after {time.monotonic() - told_s:.1f} s")
        return load.stop()


def kill_one(master: int, load: Load) -> Counter[str]:
    """SIGKILL to one worker; prints how long its replacement took to be there."""
    before = children(master)
    os.kill(before[0], signal.SIGKILL)
    killed_s = time.monotonic()
    while len(set(children(master)) - set(before)) == 0:
        time.sleep(0.005)
    print(f"forked anew after {time.monotonic() - killed_s:.3f} s")
    time.sleep(2)
    return load.stop()


def drop(process: "subprocess.Popen[str]") -> None:
    """Keep the pipe empty."""
    assert process.stderr is not None
    for line in process.stderr:
        entry = json.loads(line)
        if entry["message"] in ("a worker has died", "serving"):
            print(entry["time"], entry["message"], entry.get("number", entry.get("worker")))


if __name__ == "__main__":
    main()
