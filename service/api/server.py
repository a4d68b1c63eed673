"""uvicorn with this service's way of stopping: red first, then quiet, then gone, with exit code 0.

First signal: /readyz turns red and requests are still answered for `drain_delay_s`, so that load
balancers can look away. Then intake stops and what was accepted is finished. A second signal skips
the delay, a third one the finishing.
"""

import asyncio
import contextlib
import functools
import gc
import logging
import math
import signal
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from service.api.connection import BoundedConnection, ConnectionLimits
from service.api.cors import with_cors
from service.api.middleware import Gate
from service.edge_settings import EdgeSettings
from service.errors import SettingsInvalid

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ANSWER_GRACE_S = 1.0
"""Time for the last answers to leave after the batcher has settled every request."""


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet; raises OSError with the address in it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as exc:
        listener.close()
        raise OSError(f"cannot listen on {host}:{port}: {exc.strerror}") from exc
    return listener


def run(app: Gate, *listeners: socket.socket) -> None:
    """Serve on bound sockets until a signal ends it; a second one is the admin's."""
    # What lives now lives for ever: the collector need not walk it again and again under load.
    gc.collect()
    gc.freeze()
    DrainingServer(app).run(sockets=list(listeners))


class DrainingServer(uvicorn.Server):
    """Drains on the first signal instead of stopping on it."""

    def __init__(self, app: Gate) -> None:
        settings = app.serving.settings
        super().__init__(
            uvicorn.Config(
                with_cors(app, settings.allowed_origins()),
                http=_protocol(app),  # type: ignore[arg-type]
                loop="uvloop",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=settings.keep_alive_s,
                timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s + ANSWER_GRACE_S),
                **_tls(settings),
            )
        )
        _load(self.config)
        self._serving = app.serving
        self._signals_seen = 0
        self._cut: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            scheme = "https" if self.config.is_ssl else "http"
            log.info("serving", extra={"fields": {"url": f"{scheme}://{host}:{port}"}})

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals on the loop; uvicorn's own way raises them again, so it exits non-zero."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.on_signal)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def on_signal(self) -> None:
        """One step further towards the end with each signal."""
        self._signals_seen += 1
        self._serving.draining = True
        log.info("signal %d: shutting down", self._signals_seen)
        if self._signals_seen == 1:
            delay_s = self._serving.settings.drain_delay_s
            asyncio.get_running_loop().call_later(delay_s, self._stop)
        elif self._signals_seen == 2:
            self._stop()
        else:
            self.force_exit = True
            self._cut = asyncio.create_task(self._serving.deployments.drain(0.0))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain the batcher while uvicorn waits for the answers to leave."""
        drain = asyncio.create_task(self._serving.drain())
        await super().shutdown(sockets)
        await drain

    def _stop(self) -> None:
        self.should_exit = True


def _protocol(app: Gate) -> "functools.partial[BoundedConnection]":
    settings = app.serving.settings
    limits = ConnectionLimits(
        settings.max_header_bytes,
        settings.header_timeout_s,
        settings.max_connections,
        app.new_request_id,
        app.serving.telemetry.rejected,
    )
    return functools.partial(BoundedConnection, limits=limits)


def _tls(settings: EdgeSettings) -> dict[str, Any]:
    """uvicorn's options for HTTPS; none where no certificate is set."""
    if settings.tls_certfile is None:
        return {}
    password = settings.tls_keyfile_password
    return {
        "ssl_certfile": str(settings.tls_certfile),
        "ssl_keyfile": str(settings.tls_keyfile) if settings.tls_keyfile else None,
        # With None a locked key would make OpenSSL ask on the terminal, and wait.
        "ssl_keyfile_password": password.get_secret_value() if password else "",
    }


def _load(config: uvicorn.Config) -> None:
    """Read certificate and key now; raises SettingsInvalid where they do not fit or open."""
    try:
        config.load()
    except OSError as exc:  # ssl.SSLError is one
        raise SettingsInvalid(
            f"tls_certfile {config.ssl_certfile} and its key cannot be used ({exc}): they must be "
            "PEM, belong together, and a locked key needs tls_keyfile_password"
        ) from exc
