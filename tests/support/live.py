"""A real service on loopback, in a thread of the test's process."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from service.api.app import create_app
from service.core.engine import Engine
from service.edge.ports import bind
from service.edge.server import DrainingServer
from service.observe.telemetry import Telemetry
from service.settings.settings import Settings
from tests.support.fakes import SAFETY_S, fake_settings


class ThreadServer(DrainingServer):
    """The server without its signal handlers, which only a main thread may set."""

    capture_signals = uvicorn.Server.capture_signals  # type: ignore[assignment]


@contextmanager
def live_service(bundle: Path, settings: Settings | None = None, **changes: Any) -> Iterator[str]:
    """Serve a bundle under these settings, or fake ones with changes; the address as a URL."""
    settings = settings or fake_settings(**changes)
    engine = Engine.open(bundle, device="cpu")
    if settings.state_dir is not None:
        engine = engine.with_changes(settings.state_dir)
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
