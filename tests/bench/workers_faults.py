"""What do clients see when a worker is killed, and when the master gets SIGTERM?

    python -m tests.bench.workers_faults BUNDLE [--drains 1] [--new-connections]

Clients send without pause and count the outcomes. Each keeps its connection, or opens a new one for
each request with `--new-connections`. A client whose connection breaks opens another one and goes
on. With `--drains` above 1, the script starts and ends that many services and kills no worker.
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
    """Clients that send until `stop` is called or until nobody listens on the port."""

    def __init__(self, port: int, new_connections: bool) -> None:
        self.outcomes: Counter[str] = Counter()
        self._port = port
        self._headers = JSON | {"connection": "close"} if new_connections else JSON
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> Counter[str]:
        """Let the clients end, and return how often each outcome occurred."""
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
    """Kill one worker under load, then end the master under load; with several drains only end."""
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
        reader = threading.Thread(target=read_log, args=(process,), daemon=True)
        reader.start()
        if options.workers > 1 and options.drains == 1:
            load = Load(port, options.new_connections)
            time.sleep(12)  # a worker that dies earlier after its start counts as a fast death
            print("killed:", dict(kill_one(process.pid, load)))
        load = Load(port, options.new_connections)
        time.sleep(2)
        terminated_s = time.monotonic()
        process.terminate()
        code = process.wait(60)
        print(f"told to end: exit code {code} after {time.monotonic() - terminated_s:.1f} s")
        return load.stop()


def kill_one(master: int, load: Load) -> Counter[str]:
    """Kill one worker by SIGKILL, and print how long the master took to fork another."""
    before = children(master)
    os.kill(before[0], signal.SIGKILL)
    killed_s = time.monotonic()
    while len(set(children(master)) - set(before)) == 0:
        time.sleep(0.005)
    print(f"forked anew after {time.monotonic() - killed_s:.3f} s")
    time.sleep(2)
    return load.stop()


def read_log(process: "subprocess.Popen[str]") -> None:
    """Read the service's log, so that its pipe never fills; print deaths and starts of workers."""
    assert process.stderr is not None
    for line in process.stderr:
        entry = json.loads(line)
        if entry["message"] in ("a worker has died", "serving"):
            print(entry["time"], entry["message"], entry.get("number", entry.get("worker")))


if __name__ == "__main__":
    main()
