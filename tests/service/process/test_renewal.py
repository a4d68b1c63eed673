"""A swapped bundle in a group of real workers: the master opens it, and forks new ones."""

import http.client
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.bundle.manifest import POINTER
from service.serving.desired import Desired, DesiredModel, write_desired
from tests.support.bundle_root import bundle_id, write_bundle_root
from tests.support.faults import frozen, late_files
from tests.support.processes import START_S, ServiceProcess, service_process

pytestmark = pytest.mark.slow

SAMPLES = 20
"""Connections that are asked in turn: were there two kinds of workers, each would get some."""


@pytest.fixture
def root(tiny_bundle: Path, tiny_flat_bundle: Path, tmp_path: Path) -> Path:
    return write_bundle_root(tmp_path / "bundles", tiny_bundle, tiny_flat_bundle)


@contextmanager
def two_workers(root: Path, *arguments: str) -> Iterator[ServiceProcess]:
    state = root.parent / "state"
    state.mkdir(exist_ok=True)
    options = ("--workers", "2", "--device", "cpu", "--admin-key", "admin", "--drain-delay-s", "0")
    with service_process(root, *options, "--state-dir", str(state), *arguments) as service:
        # Nobody reads the log from here on, and a full pipe would stop the service.
        service.wait_for("serving")
        assert service.process.stderr is not None
        threading.Thread(target=service.process.stderr.read, daemon=True).start()
        yield service
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(START_S) == 0


def call(service: ServiceProcess, method: str, path: str, body: Any = None) -> Any:
    """The content of one answer, which must be 200, on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=START_S)
    headers = {"content-type": "application/json", "authorization": "Bearer admin"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    assert answer.status == 200, content
    return json.loads(content)


def answering(service: ServiceProcess) -> set[str]:
    """Ids of the bundles that answer on many connections."""
    body = {"query": "the white whale", "k": 3}
    return {call(service, "POST", "/v1/recommend", body)["bundle_id"] for _ in range(SAMPLES)}


def served(service: ServiceProcess) -> list[list[tuple[str, str, float | None]]]:
    """What the workers have open that answer on many connections: each (name, role, share)."""
    reports = {
        json.dumps(
            [
                (model["name"], bundle["role"], bundle["canary_percent"])
                for model in call(service, "GET", "/v1/models")["models"]
                for bundle in model["bundles"]
            ]
        )
        for _ in range(SAMPLES)
    }
    return [[tuple(one) for one in json.loads(report)] for report in reports]


def until(reached: Callable[[], bool]) -> None:
    while not reached():
        threading.Event().wait(0.05)


def until_renewed(service: ServiceProcess, times: int = 1, result: str = "succeeded") -> None:
    sample = f'astrolabe_worker_renewals_total{{result="{result}"}}'
    until(lambda: service.scrape().get(sample, 0.0) >= times)


def test_after_an_activation_all_workers_are_new_and_serve_it_and_no_request_failed(
    root: Path,
) -> None:
    with two_workers(root) as service:
        ended, statuses = threading.Event(), set[int]()

        def load() -> None:
            while not ended.is_set():
                body = json.dumps({"query": "the white whale"})
                statuses.add(service.ask("POST", "/v1/recommend", body))

        client = threading.Thread(target=load)
        client.start()
        for times, name in enumerate(("two", "one"), start=1):
            call(service, "POST", "/admin/bundles/activate", {"bundle": name})
            until_renewed(service, times)
            assert answering(service) == {bundle_id(root / name)}
        ended.set()
        client.join()
        seen = service.scrape()
        assert statuses == {200}
        assert seen.get("astrolabe_worker_restarts_total", 0.0) == 0
        assert seen["astrolabe_workers"] == 2
        assert seen['astrolabe_bundle_swap_total{result="activated"}'] == 2


def test_a_canary_keeps_its_share_and_a_new_share_needs_no_new_workers(root: Path) -> None:
    with two_workers(root) as service:
        call(service, "POST", "/admin/bundles/canary", {"bundle": "two", "percent": 30})
        until_renewed(service)
        assert served(service) == [[("tiny", "current", None), ("tiny", "canary", 30)]]
        call(service, "POST", "/admin/bundles/canary", {"bundle": "two", "percent": 7})
        until(lambda: served(service) == [[("tiny", "current", None), ("tiny", "canary", 7)]])
        call(service, "POST", "/admin/bundles/activate", {"bundle": "two"})
        until_renewed(service, 2)  # so that the earlier bundle is freed
        assert answering(service) == {bundle_id(root / "two")}
        call(service, "POST", "/admin/bundles/rollback", {})
        until_renewed(service, 3)
        assert answering(service) == {bundle_id(root / "one")}


def test_a_bundle_that_the_master_cannot_open_leaves_all_workers_as_they_are(root: Path) -> None:
    failing = 'astrolabe_background_errors_total{task="share-bundles"}'
    with two_workers(root) as service:
        with frozen(service.process.pid):
            call(service, "POST", "/admin/bundles/activate", {"bundle": "two"})
            late = late_files(root / "two", "labels.jsonl")
            late.__enter__()
        until(lambda: service.scrape().get(failing, 0.0) >= 2)
        # The worker that was told serves it, the other one has not heard of it.
        assert answering(service) <= {bundle_id(root / "one"), bundle_id(root / "two")}
        late.__exit__(None, None, None)
        until_renewed(service)
        assert answering(service) == {bundle_id(root / "two")}


def test_a_pointer_that_moves_is_followed_by_all_and_an_activated_model_stays(root: Path) -> None:
    with two_workers(root, "--watch-s", "0.1") as service:
        call(service, "POST", "/admin/bundles/activate", {"bundle": "other"})
        until_renewed(service)
        (root / POINTER).write_text("two")
        until_renewed(service, 2)
        assert answering(service) == {bundle_id(root / "two")}
        assert served(service) == [[("tiny", "current", None), ("other", "current", None)]]


def test_a_restart_shares_the_earlier_choice_and_so_does_a_replaced_worker(root: Path) -> None:
    (root.parent / "state").mkdir()
    one, two, other = (str(root / name) for name in ("one", "two", "other"))
    models = {"tiny": DesiredModel(two, one, one, 40.0), "other": DesiredModel(other)}
    write_desired(root.parent / "state", Desired(one, models))
    shares = [("tiny", "current", None), ("tiny", "canary", 40), ("other", "current", None)]
    with two_workers(root) as service:
        assert served(service) == [shares]
        pid = service.process.pid
        [first, _] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(first), signal.SIGKILL)
        until(lambda: service.scrape().get("astrolabe_worker_restarts_total", 0.0) == 1)
        assert served(service) == [shares]
        assert not [name for name in service.scrape() if "renewals" in name]
