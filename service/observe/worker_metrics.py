"""Metrics of several processes in files of one folder, and those that only their master knows.

Each process calls `share_metrics` before it makes any metric. A scrape of any worker then adds up
what all of them wrote (`service.observe.telemetry`).
"""

import os
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, values
from prometheus_client.multiprocess import mark_process_dead

MULTIPROCESS_DIR: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client looks for the folder of metric files."""


def forget_worker(folder: Path, writer: str) -> None:
    """Take a dead worker's gauges out of the sums; what it counted stays counted."""
    mark_process_dead(writer, str(folder))


def share_metrics(folder: Path, writer: str) -> None:
    """From here on, keep this process's metrics in files of `folder` that are named for `writer`.

    A worker's number and not its process id names them: the replacement of a dead worker goes on
    counting in the same files, so there are never more of them than workers.
    """
    os.environ[MULTIPROCESS_DIR] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: writer)


class MasterTelemetry:
    """What the master of several workers knows: its workers, and what all processes use.

    These are the process's own metrics of a single process, summed: memory is the proportional set
    size, in which a page that several processes share counts once.
    """

    def __init__(self, folder: Path, started_s: float) -> None:
        """`folder` is that of the workers' metrics, `started_s` the master's start (Unix time)."""
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

    def workers(self, running: int) -> None:
        """Tell how many workers run now."""
        self._workers.set(running)

    def restarted(self) -> None:
        """Count one worker started in place of a dead one."""
        self._restarts.inc()

    def usage(self, cpu_s: float, memory_bytes: int, open_fds: int) -> None:
        """Tell what all processes use now; `cpu_s` is since the start."""
        self._cpu.inc(max(0.0, cpu_s - self._cpu_s))
        self._cpu_s = max(self._cpu_s, cpu_s)
        self._memory.set(memory_bytes)
        self._open_fds.set(open_fds)
