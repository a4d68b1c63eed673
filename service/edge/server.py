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
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import uvicorn
from fastapi import FastAPI

from service.edge.connection import BoundedConnection, ConnectionLimits
from service.edge.ports import accept_all, hold_new_connections
from service.errors import SettingsInvalid
from service.gate.gate import Gate
from service.settings.edge import EdgeSettings

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ANSWER_GRACE_S = 1.0
"""Time for the last answers to leave after the batcher has settled every request."""

PARTS: Final[dict[str, Any]] = {
    "loop": "uvloop",
    "ws": "none",
    "lifespan": "on",
    "log_config": None,
}

LAST_HANDSHAKES_S = 0.1
"""Time for connections that have begun to be made before the port closes."""

LAST_REQUESTS_S = 0.1
"""Time for requests to arrive on connections that were opened just before the port closed."""

TICKS_BETWEEN_REFRESHES = 5

GC_THRESHOLDS = (50_000, 10, 100)
"""What outlives its turn before the collector looks for cycles among the young, and how many such
looks make one among the older and one among all. Thousands of requests that wait are as many as
10,000 objects again and again, and looking at them was a twentieth of the time; with 3,500 open
connections a look at all takes 200 ms, in which nothing is answered. What requests leave behind
dies by its reference count."""


def run(
    app: Gate,
    listeners: Sequence[socket.socket],
    lifeline: int | None = None,
    ports_end: Callable[[], bool] = lambda: True,
) -> None:
    """Serve on bound sockets until a signal ends it, or until `lifeline` can be read.

    `lifeline` is a file descriptor of a worker process: its end of file says that the master died.
    `ports_end` says, once this ends, whether no other process goes on serving these sockets.
    """
    # What lives now lives for ever: the collector need not walk it again and again under load.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    DrainingServer(app, lifeline, ports_end).run(sockets=list(listeners))


def preload() -> None:
    """Import what serving would import later: before a fork, so that workers share it."""
    uvicorn.Config(FastAPI(), **PARTS).load()


class DrainingServer(uvicorn.Server):
    """Drains on the first signal instead of stopping on it."""

    def __init__(
        self,
        app: Gate,
        lifeline: int | None = None,
        ports_end: Callable[[], bool] = lambda: True,
    ) -> None:
        settings = app.serving.settings
        super().__init__(
            uvicorn.Config(
                app,
                http=_protocol(app),  # type: ignore[arg-type]
                **PARTS,
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
        self._lifeline = lifeline
        self._ports_end = ports_end
        self._names = {
            settings.admin_port: "serving admin",
            settings.metrics_port: "serving metrics",
        }
        self._signals_seen = 0
        self._cut: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            scheme = "https" if self.config.is_ssl else "http"
            what = self._names.get(port, "serving")
            log.info(what, extra={"fields": {"url": f"{scheme}://{host}:{port}"}})

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals on the loop; uvicorn's own way raises them again, so it exits non-zero."""
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            loop.add_signal_handler(number, self.on_signal)
        if self._lifeline is not None:
            loop.add_reader(self._lifeline, self._on_master_gone, loop, self._lifeline)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)  # once more what ends the process, not an exception
            if self._lifeline is not None:
                loop.remove_reader(self._lifeline)

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

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: let other workers' scrapes see this one's metrics."""
        if counter % TICKS_BETWEEN_REFRESHES == 0:
            self._serving.telemetry.tick()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain the batcher while uvicorn waits for the answers to leave."""
        await self._close_ports(sockets or [])
        drain = asyncio.create_task(self._serving.drain())
        await super().shutdown(sockets)
        await drain

    async def _close_ports(self, listeners: Sequence[socket.socket]) -> None:
        """Stop listening without hanging up on anybody.

        Closing a port resets the connections that the kernel has made and nobody has accepted yet,
        and uvicorn hangs up on those that have not sent a request yet. So no more are made, the
        former are accepted, those left unread are read, and all get a moment to send it. A worker
        that ends alone leaves the ports to the others, and new connections too.
        """
        if self._ports_end():
            for listener in listeners:
                hold_new_connections(listener)
            await asyncio.sleep(LAST_HANDSHAKES_S)
        self._serving.shedding.resting.end()
        accepted = [one for listener in listeners for one in accept_all(listener)]
        for server in self.servers:
            server.close()
        for listener in listeners:
            listener.close()
        loop = asyncio.get_running_loop()
        for connection in accepted:
            await loop.connect_accepted_socket(self._connection, connection)
        await asyncio.sleep(LAST_REQUESTS_S)

    def _connection(self) -> asyncio.Protocol:
        config = self.config
        return config.http_protocol_class(  # type: ignore[call-arg]
            config=config, server_state=self.server_state, app_state=self.lifespan.state
        )

    def _on_master_gone(self, loop: asyncio.AbstractEventLoop, lifeline: int) -> None:
        loop.remove_reader(lifeline)
        log.error("the master process has died: this worker drains and ends")
        self._ports_end = lambda: True
        self.on_signal()

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
        app.serving.shedding,
        app.cors,
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
