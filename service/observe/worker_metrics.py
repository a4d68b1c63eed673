"""Metrics of worker processes, kept in files of one folder, and the metrics of their master.

Each process calls `share_metrics` before it makes any metric. A scrape of any worker then adds up
the metrics of all (`service.observe.telemetry`).
"""

import os
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, values
from prometheus_client.multiprocess import mark_process_dead

MULTIPROCESS_DIR: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable in which prometheus_client looks for the folder of metric files."""


def forget_worker(folder: Path, writer: str) -> None:
    """Delete a dead worker's live gauges. Its counters and histograms stay in the sums."""
    mark_process_dead(writer, str(folder))


def share_metrics(folder: Path, writer: str) -> None:
    """Keep this process's metrics in files of `folder` that bear the name `writer`, from now on.

    `writer` is the worker's number and not its process id. So the replacement of a dead worker goes
    on with the same files, and their number does not grow (docs/decisions/0018).
    """
    os.environ[MULTIPROCESS_DIR] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: writer)


class MasterTelemetry:
    """Metrics that only the master can know: its workers, and the usage of all processes.

    They have the names of a single process's metrics. Memory is the sum of the proportional set
    sizes, in which a page that several processes share counts once.
    """

    def __init__(self, folder: Path, started_s: float) -> None:
        """`folder` is the workers' folder of metrics.

        `started_s` is the master's start, Unix time.
        """
        share_metrics(folder, "master")
        registry = CollectorRegistry()

        def gauge(name: str, help_text: str) -> Gauge:
            return Gauge(name, help_text, registry=registry, multiprocess_mode="livemax")

        self._workers = gauge("astrolabe_workers", "Worker processes that run.")
        self._restarts = Counter(
            "astrolabe_worker_restarts", "Workers started in place of dead ones.", registry=registry
        )
        self._cpu = Counter("process_cpu_seconds", "CPU time of all processes.", registry=registry)
        self._memory = gauge("process_resident_memory_bytes", "Memory, shared pages counted once.")
        self._open_fds = gauge("process_open_fds", "Open file descriptors of all processes.")
        gauge("process_start_time_seconds", "Start of the master, Unix time.").set(started_s)
        self._cpu_s = 0.0

    def record_workers(self, running: int) -> None:
        """Record how many workers run now."""
        self._workers.set(running)

    def count_restart(self) -> None:
        """Count one worker started in place of a dead one."""
        self._restarts.inc()

    def record_usage(self, cpu_s: float, memory_bytes: int, open_fds: int) -> None:
        """Record the use of all processes. `cpu_s` counts CPU seconds since their start."""
        self._cpu.inc(max(0.0, cpu_s - self._cpu_s))
        self._cpu_s = max(self._cpu_s, cpu_s)
        self._memory.set(memory_bytes)
        self._open_fds.set(open_fds)
