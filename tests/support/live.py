"""The real server on loopback, in this process: around a bundle, or around a fake engine."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from service.api.app import create_app
from service.core.batching.batcher import MicroBatcher
from service.core.catalogue.label_rules import read_label_rules
from service.core.engine import Engine
from service.edge.ports import bind
from service.edge.server import DrainingServer
from service.gate.gate import Gate
from service.observe.telemetry import Telemetry
from service.settings.settings import Settings
from tests.support.fakes import JSON, SAFETY_S, FakePredict, fake_engine, fake_settings
from tests.support.metrics import samples


class ThreadServer(DrainingServer):
    """The server without its signal handlers, which only a main thread may set."""

    capture_signals = uvicorn.Server.capture_signals  # type: ignore[assignment]


@contextmanager
def live_service(bundle: Path, settings: Settings | None = None, **changes: Any) -> Iterator[str]:
    """Serve a bundle on a thread, under these settings or fake ones with changes; its URL."""
    settings = settings or fake_settings(**changes)
    engine = Engine.open(bundle, device="cpu")
    if settings.state_dir is not None:
        engine = engine.with_changes(settings.state_dir)
    if settings.label_rules is not None:
        rules = read_label_rules(settings.label_rules)
        engine = engine.with_rules(rules[engine.manifest.name])
    server = ThreadServer(create_app(engine, settings, Telemetry()))
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        end_s = time.monotonic() + SAFETY_S
        while not server.started and time.monotonic() < end_s:
            thread.join(0.005)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(SAFETY_S)
            assert not thread.is_alive()


@dataclass
class Served:
    """A server in the test's own event loop, and a client that talks to it over a socket."""

    app: Gate
    server: DrainingServer
    ended: "asyncio.Task[None]"
    client: httpx.AsyncClient
    predict: FakePredict
    listener: socket.socket

    @property
    def batcher(self) -> MicroBatcher:
        """The batcher that requests wait in."""
        return self.app.serving.default.batcher

    def ask(self) -> "asyncio.Task[httpx.Response]":
        """Send one short query."""
        return asyncio.create_task(
            self.client.post("/v1/recommend", content=b'{"query":"a"}', headers=JSON)
        )

    async def metric(self, sample: str) -> float:
        """Value of one line of /metrics; 0 where it is not there yet."""
        return samples((await self.client.get("/metrics")).text).get(sample, 0.0)

    async def rejected(self, reason: str) -> float:
        """How many requests were refused for this reason."""
        return await self.metric(f'astrolabe_rejected_total{{reason="{reason}"}}')


@asynccontextmanager
async def served(
    verify: Any = True, all_stop: Callable[[], bool] = lambda: True, **settings: Any
) -> AsyncIterator[Served]:
    """Serve a fake engine under fake settings with these changes; drained at the end."""
    predict = FakePredict()
    app = create_app(fake_engine(predict), fake_settings(**settings), Telemetry())
    server = DrainingServer(app, all_stop=all_stop)
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        ended = asyncio.create_task(server.serve(sockets=[listener]))
        scheme = "https" if server.config.is_ssl else "http"
        url = f"{scheme}://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, verify=verify) as client:
            while not server.started:
                await asyncio.sleep(0.001)
            try:
                async with asyncio.timeout(SAFETY_S):
                    yield Served(app, server, ended, client, predict, listener)
            finally:
                predict.release()
                server.should_exit = True
                await ended
