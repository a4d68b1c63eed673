"""Serve bundles on bound ports until a signal: in this process, or in workers that it forks.

With workers on the CPU, the master opens every bundle once and then forks. The workers share its
memory pages, and are replaced when other bundles are to be served (docs/decisions/0027). This needs
encoder calls without a thread pool (`intra_op_threads` is 1), because neither a thread pool nor a
GPU context survives a fork. Otherwise each worker opens the bundles itself (docs/decisions/0018).
"""

import logging
import mmap
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from service.api.app import create_app
from service.core.engine import Engine
from service.edge.server import ANSWER_GRACE_S, preload, run
from service.errors import AstrolabeError
from service.gate.gate import Gate
from service.observe.gpu_metrics import open_gpu_metrics
from service.observe.logs import configure_logging
from service.observe.telemetry import Telemetry
from service.observe.tracing import check_tracing, open_tracer
from service.observe.worker_metrics import MasterTelemetry, SharedMetrics
from service.process.shared_bundles import SharedBundles
from service.process.supervisor import Supervisor
from service.process.usage import group_usage, n_threads, started_s
from service.serving.deployment import check_label_rules, open_engine, with_changes
from service.serving.fetching import fetched_folder
from service.serving.held import HeldBundles
from service.settings.settings import Settings

log = logging.getLogger(__name__)

KILL_GRACE_S: Final = 5.0
"""The master kills a worker this long after the settings' own time for a drain has passed. A
choice: a longer time delays the end of a stuck service, a shorter one may cut off a worker on a
busy machine."""

GPU_FILES: Final = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""One of these exists where there is an NVIDIA GPU: the first on Linux, the second under WSL."""


def serve_alone(settings: Settings, listeners: Sequence[socket.socket]) -> None:
    """Serve in this process; raises what `open_engines` raises, and CatalogueError."""
    first, *more = open_engines(settings)
    _run(first, more, settings, Telemetry(), lambda app: run(app, listeners))


def serve_with_workers(settings: Settings, listeners: Sequence[socket.socket]) -> None:
    """Serve in `settings.workers` processes.

    Raises what `open_engines` raises, and WorkersFailed.
    """
    check_tracing(settings)
    engines = _open_before_fork(settings)
    # Twice the areas, because old and new workers run beside each other in a renewal.
    metrics = SharedMetrics(settings.workers * (2 if engines else 1))
    stop_flag = mmap.mmap(-1, 1)  # the workers see this byte; the master sets it when it stops
    watcher = MasterWatcher(metrics, listeners, stop_flag)
    bundles = SharedBundles(engines, settings, watcher.telemetry) if engines else None
    del engines  # so that a bundle is freed once `bundles` has dropped it
    if bundles is not None:
        bundles.open_choice()

    def work(number: int, lifeline: int, beat: Callable[[], None]) -> None:
        def serve(app: Gate) -> None:
            run(app, listeners, lifeline, lambda: stop_flag[0] != 0, beat)

        _work(number, bundles, settings, metrics, serve)

    kill_after_s = settings.drain_delay_s + settings.drain_timeout_s
    kill_after_s += ANSWER_GRACE_S + KILL_GRACE_S
    Supervisor(
        settings.workers,
        work,
        watcher,
        kill_after_s,
        settings.worker_silence_s,
        watcher.telemetry.background,
        bundles,
    ).run()


def _open_before_fork(settings: Settings) -> list[Engine]:
    """Open, import and cache what workers can share; no engines where each must open its own.

    Raises what `open_engines` raises.
    """
    engines = open_engines(settings) if _engines_survive_fork(settings) else []
    if (threads := n_threads()) > 1:
        log.warning("%d threads run before the fork: each worker opens its own bundles", threads)
        engines = []
    preload()
    if engines:
        # The master drops this application. But workers now share what it imported and cached,
        # which saves each of them 4 MB.
        app = create_app(engines[0], settings, Telemetry(), more=engines[1:])
        app.serving.deployments.let_go()
    return engines


def open_engines(settings: Settings) -> list[Engine]:
    """Open every bundle that the settings name.

    Raises BundleError, DeviceUnavailable, SettingsInvalid.
    """
    paths = (settings.bundle, *settings.more_bundles)
    engines = [open_engine(fetched_folder(path, settings), settings) for path in paths]
    check_label_rules(engines, settings)
    return engines


class MasterWatcher:
    """Records the master's metrics, and removes the gauges of dead workers."""

    def __init__(
        self, metrics: SharedMetrics, listeners: Sequence[socket.socket], stop_flag: mmap.mmap
    ) -> None:
        """`stop_flag` is one byte of memory that the master shares with the workers."""
        self._metrics = metrics
        self._listeners = listeners
        self._stop_flag = stop_flag
        self.telemetry = MasterTelemetry(metrics, started_s(os.getpid()))

    def on_running(self, pids: list[int]) -> None:
        """Record how many workers run, and what they and the master use together."""
        self.telemetry.record_workers(len(pids))
        usage = group_usage(os.getpid(), pids)
        self.telemetry.record_usage(usage.cpu_s, usage.memory_bytes, usage.open_fds)

    def on_died(self, number: int) -> None:
        """Leave a dead worker's gauges out of the sums."""
        self._metrics.forget(str(number))

    def on_replaced(self, number: int) -> None:
        """Count a worker that replaces a dead one."""
        self.telemetry.count_restart()

    def on_silent(self, number: int) -> None:
        """Count a worker that no longer answered."""
        self.telemetry.count_hang()

    def on_stopping(self) -> None:
        """Close the master's listening sockets, and tell the workers that all of them end.

        Were the master to keep the sockets open, clients would wait on them after the last worker
        has ended. Once they are closed, the kernel refuses new connections at once.
        """
        self._stop_flag[0] = 1
        for listener in self._listeners:
            listener.close()


def _work(
    number: int,
    bundles: SharedBundles | None,
    settings: Settings,
    metrics: SharedMetrics,
    serve: Callable[[Gate], None],
) -> None:
    """Call `serve` as worker `number`, in its own process."""
    configure_logging(settings.log_level, settings.log_format, worker=number)
    metrics.share(str(number))
    try:
        first, *more = open_engines(settings) if bundles is None else bundles.current
        held = None if bundles is None else bundles.held
        _run(first, more, settings, Telemetry(metrics), serve, held)
    except AstrolabeError as exc:
        log.error("cannot serve: %s", exc.detail)
        sys.exit(1)


def _run(
    first: Engine,
    more: Sequence[Engine],
    settings: Settings,
    telemetry: Telemetry,
    serve: Callable[[Gate], None],
    held: HeldBundles | None = None,
) -> None:
    """Build the application on open engines and call `serve` with it.

    Adds label changes and rules to the engines. Adds tracing and GPU metrics where there are any.
    """
    telemetry.tracer = open_tracer(settings, telemetry.background)
    gpu = open_gpu_metrics(first.encoder.device)
    if gpu is not None:
        telemetry.add_collector(gpu)
    first, *more = (with_changes(engine, settings) for engine in (first, *more))
    try:
        serve(create_app(first, settings, telemetry, more=more, held=held))
    finally:
        if telemetry.tracer is not None:
            telemetry.tracer.shutdown()


def _engines_survive_fork(settings: Settings) -> bool:
    """Whether a forked worker can use the engines that its master opened with these settings."""
    may_use_gpu = settings.device != "cpu" and (
        settings.device != "auto" or any(path.exists() for path in GPU_FILES)
    )
    return settings.intra_op_threads == 1 and not may_use_gpu
