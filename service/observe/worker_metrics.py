"""Metrics of worker processes in memory that all share, and the metrics of their master.

Each process calls `SharedMetrics.share` before it makes any metric. A scrape of any worker then
adds up the metrics of all (`service.observe.shared_values`).
"""

from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, values

from service.background import Background
from service.observe.shared_values import Area, SharedCollector, SharedValue, Writer

MASTER: Final = "master"


class SharedMetrics:
    """An area of memory for the metrics of each process. Make it before the fork."""

    def __init__(self, n_workers: int) -> None:
        self._areas = {name: Area() for name in (MASTER, *map(str, range(n_workers)))}

    def share(self, writer: str) -> None:
        """Keep this process's metrics in the area of `writer` from now on.

        `writer` is the worker's number and not its process id. So the replacement of a dead worker
        goes on with the same counters, and their number does not grow (docs/decisions/0018).
        """
        values.ValueClass = partial(SharedValue, Writer(self._areas[writer]))

    def forget(self, writer: str) -> None:
        """Leave out a dead worker's live gauges. Its counters and histograms stay in the sums."""
        self._areas[writer].forget_live()

    def collector(self) -> SharedCollector:
        """Collects the metrics of all processes."""
        return SharedCollector(list(self._areas.values()))


class MasterTelemetry:
    """Metrics that only the master can know: its workers, and the usage of all processes.

    They have the names of a single process's metrics. Memory is the sum of the proportional set
    sizes, in which a page that several processes share counts once.
    """

    def __init__(self, shared: SharedMetrics, started_s: float) -> None:
        """`started_s` is the master's start, Unix time."""
        shared.share(MASTER)
        registry = CollectorRegistry()

        def gauge(name: str, help_text: str) -> Gauge:
            return Gauge(name, help_text, registry=registry, multiprocess_mode="livemax")

        self._workers = gauge("astrolabe_workers", "Worker processes that run.")
        self._restarts = Counter(
            "astrolabe_worker_restarts", "Workers started in place of dead ones.", registry=registry
        )
        self._hangs = Counter(
            "astrolabe_worker_hangs",
            "Workers killed because they no longer answered their master.",
            registry=registry,
        )
        self._renewals = Counter(
            "astrolabe_worker_renewals",
            "Replacements of all workers after a change of bundles, by result.",
            ["result"],
            registry=registry,
        )
        self._swaps = Counter(
            "astrolabe_bundle_swap",
            "Changes of bundles, by result.",
            ["result"],
            registry=registry,
        )
        errors = Counter(
            "astrolabe_background_errors",
            "Errors of work beside the requests, by task.",
            ["task"],
            registry=registry,
        )
        self._healthy = Gauge(
            "astrolabe_background_healthy",
            "1 for a background task that works, 0 for one that fails or does not come back.",
            ["task"],
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.background = Background(lambda task: errors.labels(task).inc())
        self._cpu = Counter("process_cpu_seconds", "CPU time of all processes.", registry=registry)
        self._memory = gauge("process_resident_memory_bytes", "Memory, shared pages counted once.")
        self._open_fds = gauge("process_open_fds", "Open file descriptors of all processes.")
        gauge("process_start_time_seconds", "Start of the master, Unix time.").set(started_s)
        self._cpu_s = 0.0

    def record_workers(self, running: int) -> None:
        """Record how many workers run now, and whether the master's own work succeeds."""
        self._workers.set(running)
        for task, healthy in self.background.healthy().items():
            self._healthy.labels(task).set(healthy)

    def count_restart(self) -> None:
        """Count one worker started in place of a dead one."""
        self._restarts.inc()

    def count_hang(self) -> None:
        """Count one worker that was killed because it no longer answered."""
        self._hangs.inc()

    def count_renewal(self, result: str) -> None:
        """Count one replacement of all workers: succeeded or failed."""
        self._renewals.labels(result).inc()

    def count_swap(self, result: str) -> None:
        """Count a change of bundles that the master made or could not make: activated or failed."""
        self._swaps.labels(result).inc()

    def record_usage(self, cpu_s: float, memory_bytes: int, open_fds: int) -> None:
        """Record the use of all processes. `cpu_s` counts CPU seconds since their start."""
        self._cpu.inc(max(0.0, cpu_s - self._cpu_s))
        self._cpu_s = max(self._cpu_s, cpu_s)
        self._memory.set(memory_bytes)
        self._open_fds.set(open_fds)
