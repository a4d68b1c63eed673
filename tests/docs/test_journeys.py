"""The journeys of docs/architecture.md: each is made, and passes the files that the page lists."""

import asyncio
import gc
import importlib
import json
import pkgutil
import re
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import httpx
import pytest

import models
import service.background
from models.__main__ import main
from service.api.app import create_app
from service.edge.ports import bind
from service.edge.server import DrainingServer
from service.observe.telemetry import Telemetry
from service.serving.deployment import open_changed_engine
from tests.support.fakes import JSON, SAFETY_S, fake_settings
from tests.support.tiny_job import write_tiny_job

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
BACKGROUND = service.background.__file__

CALLED_BACK = {"service/core/encoding/text.py"}
"""Files that a library calls from threads of its own, so that their place in the order varies."""


def is_beside(frame: FrameType | None) -> bool:
    """Whether a frame is called by the server's clock or a background task."""
    while frame is not None:
        if frame.f_code.co_name == "on_tick" or frame.f_code.co_filename == BACKGROUND:
            return True
        frame = frame.f_back
    return False


class Route:
    """The project's files in the order in which calls first enter them."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self._known: set[CodeType] = set()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or code in self._known or is_beside(frame):
            return
        self._known.add(code)
        if code.co_name != "<module>":  # which runs at an import
            path = Path(code.co_filename)
            if path.is_relative_to(ROOT):
                name = path.relative_to(ROOT).as_posix()
                if name.split("/")[0] in ("service", "models") and name not in self.files:
                    self.files.append(name)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record this thread, and the threads that are started meanwhile."""
        self.files.clear()
        self._known.clear()
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)


@pytest.fixture
def route(monkeypatch: pytest.MonkeyPatch) -> Iterator[Route]:
    monkeypatch.setattr("service.serving.follow.LOOK_S", 3600.0)  # no look at files meanwhile
    gc.collect()  # what earlier tests left is finalised now, and not on the way
    for package in (service, models):  # what an import calls belongs to no journey
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    route = Route()
    threading.setprofile(route)
    try:
        yield route
    finally:
        threading.setprofile(None)


def listed(journey: str) -> list[str]:
    """Files of the list below a journey's marker."""
    part = PAGE.partition(f"<!-- journey: {journey} -->")[2]
    block = re.match(r"\s*```\n(.*?)```", part, re.S)
    assert block, f"docs/architecture.md has no list for the journey {journey!r}"
    return block[1].split()


def in_order(files: list[str]) -> list[str]:
    return [file for file in files if file not in CALLED_BACK]


@asynccontextmanager
async def served(bundle: Path, state: Path) -> AsyncIterator[httpx.AsyncClient]:
    settings = fake_settings(bundle=bundle, state_dir=state, admin_key="sesame")
    app = create_app(open_changed_engine(bundle, settings), settings, Telemetry())
    server = DrainingServer(app)
    with bind("127.0.0.1", 0) as listener:
        ended = asyncio.create_task(server.serve(sockets=[listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        headers = {"authorization": "Bearer sesame"} | JSON
        async with asyncio.timeout(SAFETY_S), httpx.AsyncClient(base_url=url, headers=headers) as c:
            while not server.started:
                await asyncio.sleep(0.001)
            yield c
            server.should_exit = True
            await ended


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("journey", "path", "bodies"),
    [
        ("query", "/v1/recommend", [{"query": "moby dick"}, {"query": "another text"}]),
        ("label", "/v1/labels", [{"labels": [{"id": i, "text": "a label"}]} for i in ("a", "b")]),
    ],
)
async def test_request_passes_the_files_that_the_page_lists(
    journey: str, path: str, bodies: list[Any], route: Route, tiny_bundle: Path, tmp_path: Path
) -> None:
    async with served(tiny_bundle, tmp_path / "state") as client:
        for body in bodies:  # the first request of a process also opens what the later ones find
            with route.recorded():
                answer = await client.post(path, content=json.dumps(body))
            assert answer.status_code == 200, answer.text
        passed = list(route.files)  # before the end of the service, whose threads are recorded too
    assert passed == listed(journey)


def test_training_job_passes_the_files_that_the_page_lists(route: Route, tmp_path: Path) -> None:
    write_tiny_job(tmp_path)
    settings = ["--set", "train.epochs=2", "--var", str(tmp_path / "var")]
    with route.recorded():
        assert main(["all", "--config", str(tmp_path / "tiny.toml"), *settings]) == 0
    expected = listed("train")
    assert set(route.files) == set(expected)
    assert in_order(route.files) == in_order(expected)
