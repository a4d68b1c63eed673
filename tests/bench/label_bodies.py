"""How long answers wait while the largest body that a route takes is sent and handled.

    python -m tests.bench.label_bodies --bundle PATH [--only add changes ...] [--seconds 5]

Starts the service, asks `/v1/recommend` every 5 ms on a connection of its own, sends one body at a
time on another, and prints the longest time that an answer took meanwhile, beside the longest of
the same time without a body. Bodies are as large as `max_body_bytes` lets them be. `ten adds` sends
ten at once, and looks a label up meanwhile.
"""

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MAX_BODY_BYTES = 1 << 20
"""Default of the setting of this name."""
MAX_CHANGES = 2_000
MAX_PARTS = 20_000
"""`service.api.labels.MAX_CHANGES` and `service.gate.bodies.MAX_PARTS`."""
PROBE_EVERY_S = 0.005
READY_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 600.0
ADMIN = {"Authorization": "Bearer admin", "Content-Type": "application/json"}
LARGE = MAX_BODY_BYTES - 4096


@dataclass(frozen=True)
class Case:
    """A body that is sent: its route, and what makes its bytes."""

    verb: str
    path: str
    make: Callable[[], bytes]
    at_once: int = 1


def _labels(prefix: str, op: dict[str, str]) -> list[dict[str, object]]:
    """As many labels as a call takes, together nearly as large as a body may be."""
    text = "a history of whales and of those who sailed after them, in letters and " * 5
    return [
        {**op, "id": f"{prefix}{i}", "text": f"{i} {text}", "metadata": {"shelf": i, "lang": "en"}}
        for i in range(MAX_CHANGES)
    ]


def _one_list(fill: str, size: int) -> str:
    return "[" + ",".join([fill] * (size // (len(fill) + 1))) + "]"


def _body(field: str, entries: list[dict[str, object]]) -> bytes:
    body = json.dumps({field: entries}).encode()
    if len(body) > MAX_BODY_BYTES:
        raise SystemExit(f"the body has {len(body)} bytes, the limit is {MAX_BODY_BYTES}")
    return body


def _metadata(fill: str, size: int = LARGE) -> bytes:
    """One label, all of whose body is a list in its metadata."""
    label = '{"labels": [{"id": "M", "text": "m", "metadata": {"of": %s}}]}'
    return (label % _one_list(fill, size)).encode()


def _labels_of(fill: str) -> bytes:
    return b'{"labels": %s}' % _one_list(fill, min(LARGE, 3 * (MAX_PARTS - 10))).encode()


CASES = {
    "add": Case("POST", "/v1/labels", lambda: _body("labels", _labels("A", {}))),
    "changes": Case(
        "POST", "/v1/label-changes", lambda: _body("changes", _labels("C", {"op": "add"}))
    ),
    "ten adds": Case("POST", "/v1/labels", lambda: _body("labels", _labels("T", {})), at_once=10),
    "empty labels": Case("POST", "/v1/labels", lambda: _labels_of("{}")),
    "numbers for labels": Case("POST", "/v1/labels", lambda: _labels_of("0")),
    "unknown fields": Case(
        "POST",
        "/v1/labels",
        lambda: json.dumps({"labels": [{f"f{i}": 1 for i in range(MAX_PARTS - 5)}]}).encode(),
    ),
    "names, one twice": Case(
        "POST",
        "/v1/labels",
        lambda: b'{"a": 1, %s, "a": 1}' % b",".join(b'"f%d":{}' % i for i in range(9_900)),
    ),
    "not JSON": Case("POST", "/v1/labels", lambda: b'{"labels": [' + b"[" * LARGE),
    "texts in metadata": Case("POST", "/v1/labels", lambda: _metadata('"x"')),
    "lists in metadata": Case("POST", "/v1/labels", lambda: _metadata("[]", 3 * (MAX_PARTS - 10))),
    "too many lists": Case("POST", "/v1/labels", lambda: _metadata("[]")),
    "put": Case("PUT", "/v1/labels/A1", lambda: b'{"metadata": {"a": %s}}' % _few()),
    "put, one text": Case("PUT", "/v1/labels/A1", lambda: b'{"text": "%s"}' % (b"x" * LARGE)),
    "delete": Case("DELETE", "/v1/labels/A2", lambda: b"x" * LARGE),
    "activate": Case("POST", "/admin/bundles/activate", lambda: b'{"bundle": %s}' % _few()),
    "recommend": Case(
        "POST",
        "/v1/recommend",
        lambda: json.dumps({"query": ["whale " * 1365] * 64}).encode(),
    ),
    "recommend, lists": Case("POST", "/v1/recommend", lambda: b'{"query": %s}' % _few()),
}


def _few() -> bytes:
    """As many lists as a body may hold."""
    return _one_list("[]", 3 * (MAX_PARTS - 10)).encode()


def main() -> int:
    """Measure each case and print a line for it."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as state, _service(arguments.bundle, Path(state)) as port:
        for name in arguments.only or CASES:
            case = CASES[name]
            body = case.make()
            quiet = _longest_s(port, lambda: time.sleep(arguments.seconds))
            began = time.monotonic()
            answer: list[str] = []
            longest = _longest_s(port, lambda: answer.append(_send_all(port, case, body)))  # noqa: B023
            took = time.monotonic() - began
            print(
                f"{name:18} {len(body) / 1e6:5.1f} MB: longest answer {longest * 1e3:6.0f} ms, "
                f"without it {quiet * 1e3:4.0f} ms; handled in {took:5.1f} s: {answer[0]}",
                flush=True,
            )
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("var/bundles"))
    parser.add_argument("--only", nargs="+", choices=CASES, help="cases to measure; all if left")
    parser.add_argument("--seconds", type=float, default=5.0, help="time without a body")
    return parser.parse_args()


@contextmanager
def _service(bundle: Path, state: Path) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "service", "--bundle", str(bundle), "--port", str(port)]
    command += ["--state-dir", str(state), "--drain-delay-s", "0", "--log-level", "error"]
    server = subprocess.Popen(command, env={**os.environ, "ASTROLABE_ADMIN_KEY": "admin"})
    try:
        _wait_until_up(port)
        yield port
    finally:
        server.terminate()
        server.wait(READY_TIMEOUT_S)


def _wait_until_up(port: int) -> None:
    end = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


def _longest_s(port: int, during: Callable[[], object]) -> float:
    """The longest time that an answer takes while `during` runs."""
    # a process of its own: this one's threads would wait for each other
    probe = subprocess.Popen(
        [sys.executable, "-c", PROBE, str(port), str(PROBE_EVERY_S)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert probe.stdout is not None
    probe.stdout.readline()  # it has had its first answers
    during()
    out, _ = probe.communicate("end\n", timeout=ANSWER_TIMEOUT_S)
    return float(out)


PROBE = """
import http.client, select, sys, time
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=600)
every, longest, n = float(sys.argv[2]), 0.0, 0
while not (n > 20 and select.select([sys.stdin], [], [], every)[0]):
    began = time.perf_counter()
    connection.request("POST", "/v1/recommend", '{"query": "the white whale"}',
                       {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    n += 1
    if n == 20:
        print("up", flush=True)
    if n > 20:
        longest = max(longest, time.perf_counter() - began)
print(longest)
"""


def _send_all(port: int, case: Case, body: bytes) -> str:
    """Send a body as often as the case says; between them a label is looked up again and again."""
    if case.at_once == 1:
        return _send(port, case, body)
    looked_up_s = [0.0]
    with ThreadPoolExecutor(case.at_once) as pool:
        bodies = [body.replace(b'"id": "T', b'"id": "T%d-' % i) for i in range(case.at_once)]
        answers = [pool.submit(_send, port, case, each) for each in bodies]
        while not all(answer.done() for answer in answers):
            began = time.monotonic()
            _send(port, Case("GET", "/v1/labels/A1", lambda: b""), b"")
            looked_up_s.append(time.monotonic() - began)
            time.sleep(PROBE_EVERY_S)
    return f"{answers[0].result()}, look-ups took up to {max(looked_up_s) * 1e3:.0f} ms"


def _send(port: int, case: Case, body: bytes) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_TIMEOUT_S)
    try:
        connection.request(case.verb, case.path, body, ADMIN)
        answer = connection.getresponse()
        return f"{answer.status} {answer.read(60).decode(errors='replace')}"
    except (BrokenPipeError, ConnectionResetError):
        return "refused before it was read"
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
