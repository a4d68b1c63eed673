"""For every test: a clean environment, no network but loopback, one tiny real bundle.

`--complete` turns every skip into a failure, unless the test is marked `gpu`.
"""

import ipaddress
import os
import socket
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support.postgres import Server, running_server
from tests.support.tiny_bundle import write_tiny_bundle

# A busy machine takes its time for an example, and that is no fault.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--complete", action="store_true", help="fail where a test is left out")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start files that hold slow tests first, so that none of them is the last to end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.config.getoption("complete") and item.get_closest_marker("gpu") is None:
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if collector.config.getoption("complete"):
        _fail_if_skipped(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} tests were left out, for the reasons below. "
            "On Debian, as root, `.ci/run` installs what they need, except a GPU."
        )


@pytest.fixture(autouse=True)
def clean_environment() -> Iterator[None]:
    """Start without ASTROLABE_ variables, and put os.environ back afterwards."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.upper().startswith("ASTROLABE_")]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server; tests take a `fresh_database` of it each."""
    with running_server() as server:
        yield server


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail any test that reaches for the network."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            raise AssertionError(f"a test tried to connect to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed bundle with an HNSW index and calibrated scores; never write into it."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def tiny_flat_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same labels behind an exact index, raw scores; never write into it."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny-flat"
    return write_tiny_bundle(folder, kind="flat", calibrated=False)


@pytest.fixture(scope="session")
def tiny_memory_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same labels with a memory of training queries, raw scores; never write into it."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny-memory"
    return write_tiny_bundle(folder, calibrated=False, memory=True)


@pytest.fixture
def anyio_backend() -> str:
    """Tests marked `anyio` run on asyncio."""
    return "asyncio"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        *_, reason = report.longrepr  # path, line, reason
        report.outcome = "failed"
        report.longrepr = (
            f"--complete leaves no test out, but this one was: {reason.removeprefix('Skipped: ')}"
        )
