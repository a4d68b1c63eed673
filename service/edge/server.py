"""Runs uvicorn, and drains the service on a signal before it ends with exit code 0.

All signals of `service.signals` do the same. At the first one /readyz turns red, unless other
workers of the service go on. Requests are still answered for `drain_delay_s`, in which load
balancers and clients turn elsewhere. Then the service accepts no more requests and answers those
that it has accepted. A second signal ends the delay. A third one fails the requests that still
wait.
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

from service.background import end
from service.edge.bounds import ConnectionLimits
from service.edge.connection import BoundedConnection
from service.edge.descriptors import LOOK_S, DescriptorWatch
from service.edge.ports import accept_all, hold_new_connections
from service.errors import SettingsInvalid
from service.gate.gate import Gate
from service.settings.edge import EdgeSettings
from service.signals import ending_signals

log = logging.getLogger(__name__)

ANSWER_GRACE_S = 1.0
"""Time to send the last answers after the batcher has settled every request. A choice: a client
that reads slowly may delay the end by this long."""

UVICORN_OPTIONS: Final[dict[str, Any]] = {
    "loop": "uvloop",
    "ws": "none",
    "lifespan": "on",
    "log_config": None,
}

LAST_HANDSHAKES_S = 0.1
"""Time to complete handshakes that have begun, before the port closes. A choice: several network
round trips."""

LAST_REQUESTS_S = 0.1
"""Time for requests to arrive on connections that were opened just before the port closed. A choice
like the one above; both lengthen every stop."""

REFRESH_S = 0.5
"""Other workers' scrapes are at most so far behind. A choice: a refresh takes time of requests."""

BEAT_S = 1.0
"""How often a worker tells its master that its event loop turns. A choice: a small part of
`worker_silence_s`."""

GC_THRESHOLDS = (50_000, 10, 100)
"""Thresholds of Python's garbage collector for its three generations (see `gc.set_threshold`). They
are far above the defaults, because few objects of a request form cycles: reference counts free
them. 3,000 waiting requests hold more than 10,000 objects, and collections of the youngest
generation took a twentieth of the time (docs/decisions/0024). With 3,500 open connections a full
collection takes 200 ms, during which nothing is answered."""


def run(
    app: Gate,
    listeners: Sequence[socket.socket],
    lifeline: int | None = None,
    all_stop: Callable[[], bool] = lambda: True,
    beat: Callable[[], None] | None = None,
) -> None:
    """Serve on bound sockets until a signal comes, or until `lifeline` can be read.

    `lifeline` is a worker's file descriptor, which reaches its end when the master dies. On a stop
    the server calls `all_stop`, which says whether all other processes that serve these sockets
    stop too. It calls `beat` once a second as long as its event loop turns.
    """
    # Objects that exist now live until the end, so the collector need not walk them under load.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    DrainingServer(app, lifeline, all_stop, beat).run(sockets=list(listeners))


def preload() -> None:
    """Import uvicorn's modules before a fork, so that the workers share their memory."""
    uvicorn.Config(FastAPI(), **UVICORN_OPTIONS).load()


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains on the first signal instead of stopping at once."""

    def __init__(
        self,
        app: Gate,
        lifeline: int | None = None,
        all_stop: Callable[[], bool] = lambda: True,
        beat: Callable[[], None] | None = None,
    ) -> None:
        settings = app.serving.settings
        super().__init__(
            uvicorn.Config(
                app,
                http=_protocol(app),  # type: ignore[arg-type]
                **UVICORN_OPTIONS,
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
        self._serving.all_stop = all_stop
        self._beat = beat
        self._log_messages = {
            settings.admin_port: "serving admin",
            settings.metrics_port: "serving metrics",
        }
        self._signals_seen = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and log the URL of each port."""
        self._start_tasks()
        await super().startup(sockets)
        self._start_heartbeat()
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            scheme = "https" if self.config.is_ssl else "http"
            message = self._log_messages.get(port, "serving")
            log.info(message, extra={"fields": {"url": f"{scheme}://{host}:{port}"}})

    def _start_tasks(self) -> None:
        telemetry = self._serving.telemetry
        background = telemetry.background
        background.guard_loop(asyncio.get_running_loop())
        descriptors = DescriptorWatch(telemetry.no_descriptor)
        self._tasks = [
            background.repeat("show-metrics", lambda: telemetry.tick(), REFRESH_S),
            background.repeat("descriptors", descriptors.look, LOOK_S),
        ]

    def _start_heartbeat(self) -> None:
        """Tell the master now, and again and again: from the first time on, this worker serves."""
        if self._beat is not None and not self.should_exit:
            self._beat()
            background = self._serving.telemetry.background
            self._tasks.append(background.repeat("heartbeat", self._beat, BEAT_S))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals on the loop. uvicorn would raise them again, and so exit non-zero."""
        loop = asyncio.get_running_loop()
        old_handlers = {number: signal.getsignal(number) for number in ending_signals()}
        for number in old_handlers:
            loop.add_signal_handler(number, self.on_signal)
        if self._lifeline is not None:
            loop.add_reader(self._lifeline, self._on_master_gone, loop, self._lifeline)
        try:
            yield
        finally:
            for number, handler in old_handlers.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)  # remove_signal_handler only set the default
            if self._lifeline is not None:
                loop.remove_reader(self._lifeline)

    def on_signal(self) -> None:
        """Turn red at the first signal, stop at the second, fail waiting requests at the third."""
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
            drain = functools.partial(self._serving.deployments.drain, 0.0)
            self._serving.telemetry.background.once("forced-drain", drain, tries=1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the ports, and drain the batchers while uvicorn sends the last answers."""
        await self._close_ports(sockets or [])
        drain = asyncio.create_task(self._serving.drain())
        await super().shutdown(sockets)
        await drain
        await end(self._tasks)

    async def _close_ports(self, listeners: Sequence[socket.socket]) -> None:
        """Stop listening, and lose no request of a connection that is already open.

        When a port closes, the kernel resets connections that no process has accepted. uvicorn then
        closes those that have not sent a request yet. So this drops new connections first, accepts
        those that wait, reads those that rest, and gives all a moment to send their requests. A
        worker that stops alone drops no new connections: the other workers accept them.
        """
        if self._serving.all_stop():
            for listener in listeners:
                hold_new_connections(listener)
            await asyncio.sleep(LAST_HANDSHAKES_S)
        self._serving.shedding.resting.stop()
        connections = [one for listener in listeners for one in accept_all(listener)]
        for server in self.servers:
            server.close()
        for listener in listeners:
            listener.close()
        loop = asyncio.get_running_loop()
        for connection in connections:
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
        self._serving.all_stop = lambda: True
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
    """uvicorn's options for HTTPS; empty where no certificate is set."""
    if settings.tls_certfile is None:
        return {}
    password = settings.tls_keyfile_password
    return {
        "ssl_certfile": str(settings.tls_certfile),
        "ssl_keyfile": str(settings.tls_keyfile) if settings.tls_keyfile else None,
        # With None, OpenSSL would ask for the password of a locked key on the terminal and wait.
        "ssl_keyfile_password": password.get_secret_value() if password else "",
    }


def _load(config: uvicorn.Config) -> None:
    """Load uvicorn's parts, certificate and key.

    Raises SettingsInvalid where the key cannot be used.
    """
    try:
        config.load()
    except OSError as exc:  # ssl.SSLError is a subclass
        raise SettingsInvalid(
            f"tls_certfile {config.ssl_certfile} and its key cannot be used ({exc}): they must be "
            "PEM, belong together, and a locked key needs tls_keyfile_password"
        ) from exc
