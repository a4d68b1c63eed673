"""Serving a bundle on bound ports until a signal: in this process, or in several that it forks.

With several, the master opens the bundle once: on the CPU, with encoder calls that stay on their
own thread, everything that is open works after a fork, and its pages are shared. A GPU context or
a pool of threads does not survive a fork: then each worker opens an engine of its own.
"""

import logging
import mmap
import os
import socket
import sys
import tempfile
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
from service.observe.worker_metrics import MasterTelemetry, forget_worker, share_metrics
from service.process.supervisor import Supervisor
from service.process.usage import group_usage, n_threads, started_s
from service.serving.deployment import check_ruled_models, open_engine, with_changes
from service.settings.settings import Settings

log = logging.getLogger(__name__)

KILL_GRACE_S: Final = 5.0
"""Beyond all the time that a draining worker may take by its settings."""

GPU_FILES: Final = (Path("/dev/nvidiactl"), Path("/dev/dxg"))


def serve_alone(settings: Settings, listeners: Sequence[socket.socket]) -> None:
    """Serve in this process; raises BundleError, DeviceUnavailable."""
    first, *more = open_engines(settings)
    _run(first, more, settings, Telemetry(), lambda app: run(app, listeners))


def serve_with_workers(settings: Settings, listeners: Sequence[socket.socket]) -> None:
    """Serve in `settings.workers` processes; raises BundleError, WorkersFailed."""
    check_tracing(settings)
    engines = open_engines(settings) if _survives_a_fork(settings) else []
    if (threads := n_threads()) > 1:
        log.warning("%d threads run before the fork: each worker opens its own bundles", threads)
        engines = []
    preload()
    if engines:
        # Made and dropped: what making it imports and fills is then shared too, 4 MB a worker.
        create_app(engines[0], settings, Telemetry(), more=engines[1:])
    with tempfile.TemporaryDirectory(prefix="astrolabe-metrics-") as folder:
        metrics = Path(folder)
        all_end = mmap.mmap(-1, 1)  # shared by what is forked; not 0 once the master stops

        def work(number: int, lifeline: int) -> None:
            _work(number, lifeline, engines, settings, listeners, metrics, all_end)

        kill_after_s = settings.drain_delay_s + settings.drain_timeout_s
        kill_after_s += ANSWER_GRACE_S + KILL_GRACE_S
        watcher = MasterWatcher(metrics, listeners, all_end)
        Supervisor(settings.workers, work, watcher, kill_after_s).run()


def open_engines(settings: Settings) -> list[Engine]:
    """Every bundle that the settings name, opened.

    Raises BundleError, DeviceUnavailable, SettingsInvalid.
    """
    paths = (settings.bundle, *settings.more_bundles)
    engines = [open_engine(path, settings) for path in paths]
    check_ruled_models(engines, settings)
    return engines


class MasterWatcher:
    """Keeps the metrics of the master and clears up behind dead workers."""

    def __init__(
        self, folder: Path, listeners: Sequence[socket.socket], all_end: mmap.mmap
    ) -> None:
        """`all_end` is one byte of memory that the workers see too."""
        self._folder = folder
        self._listeners = listeners
        self._all_end = all_end
        self._telemetry = MasterTelemetry(folder, started_s(os.getpid()))

    def running(self, pids: list[int]) -> None:
        """Tell how many workers run, and what they use together with this process."""
        self._telemetry.workers(len(pids))
        usage = group_usage(os.getpid(), pids)
        self._telemetry.usage(usage.cpu_s, usage.memory_bytes, usage.open_fds)

    def died(self, number: int) -> None:
        """Take the gauges of a worker out of the sums."""
        forget_worker(self._folder, str(number))

    def replaced(self, number: int) -> None:
        """Count a replacement."""
        self._telemetry.restarted()

    def stopping(self) -> None:
        """Let go of the ports: after the last worker, clients are refused and not left waiting.

        The workers are let know that no other takes what they leave.
        """
        self._all_end[0] = 1
        for listener in self._listeners:
            listener.close()


def _work(
    number: int,
    lifeline: int,
    engines: list[Engine],
    settings: Settings,
    listeners: Sequence[socket.socket],
    metrics: Path,
    all_end: mmap.mmap,
) -> None:
    """A worker's life, in its own process."""
    configure_logging(settings.log_level, settings.log_format, worker=number)
    share_metrics(metrics, str(number))
    try:
        first, *more = engines or open_engines(settings)
        _run(
            first,
            more,
            settings,
            Telemetry(metrics),
            lambda app: run(app, listeners, lifeline, lambda: all_end[0] != 0),
        )
    except AstrolabeError as exc:
        log.error("cannot serve: %s", exc.detail)
        sys.exit(1)


def _run(
    first: Engine,
    more: Sequence[Engine],
    settings: Settings,
    telemetry: Telemetry,
    serve: Callable[[Gate], None],
) -> None:
    """Let `serve` serve open engines, traced and with the GPU's metrics where these are."""
    telemetry.tracer = open_tracer(settings)
    gpu = open_gpu_metrics(first.encoder.device)
    if gpu is not None:
        telemetry.show_beside(gpu)
    first, *more = (with_changes(engine, settings) for engine in (first, *more))
    try:
        serve(create_app(first, settings, telemetry, more=more))
    finally:
        if telemetry.tracer is not None:
            telemetry.tracer.shutdown()


def _survives_a_fork(settings: Settings) -> bool:
    """Whether what this configuration opens can be used by a forked child."""
    may_use_gpu = settings.device != "cpu" and (
        settings.device != "auto" or any(path.exists() for path in GPU_FILES)
    )
    return settings.intra_op_threads == 1 and not may_use_gpu
