"""Telemetry: the metrics that the service counts itself, with their names and buckets.

Each `Telemetry` owns a registry, so two services can live in one process and tests see only their
own counts. Its methods are for the event loop's thread, unless their docstrings say otherwise. It
keeps the children of labelled metrics, because a look-up for each request would cost time.

Where several worker processes serve, each keeps its metrics in memory that all share
(`service.observe.worker_metrics`). A scrape of any worker adds up the metrics of all.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.registry import Collector

from service.background import Background
from service.core.live_recall import Window
from service.core.types import Prediction, StageTimings
from service.observe.answer_shapes import Shapes
from service.observe.exposition import Exposition
from service.observe.worker_metrics import SharedMetrics

if TYPE_CHECKING:
    from service.observe.tracing import RequestTracer

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
STAGES: Final = ("queue", "tokenize", "encode", "search", "rerank", "total")

SECONDS_BUCKETS: Final = (
    *(0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.00075),
    *(0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
QUERIES_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS_BUCKETS: Final = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
RATIO_BUCKETS: Final = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The buckets are choices: finer ones tell more, and each costs a series for every route and
status."""
FLUSH_AT: Final = 64
"""Observations that are collected and then recorded together. Recorded one by one, between other
work and on cold processor caches, they took a seventh of the service's CPU at one connection. A
scrape records all that wait before it reads the metrics."""

GaugeMode = Literal["livesum", "livemax", "livemin"]
"""How a scrape combines the gauges of several workers: by sum, maximum or minimum. All leave out
the gauges of dead workers."""

WATCHED: Final[Mapping[str, tuple[str, GaugeMode]]] = {
    "queue_tokens": ("Estimated tokens that wait for a lane.", "livesum"),
    "effort_steps_down": ("Steps that the ceiling on effort is lowered by, 0 if not.", "livemax"),
    "resting_connections": ("Connections left unread after a refusal.", "livesum"),
    # Workers share a catalogue, so adding these up would count labels twice.
    "delta_labels": ("Labels that are not in the index, of the model with most.", "livemax"),
    "tombstones": ("Rows of the index that do not count, of the model with most.", "livemax"),
}
"""Gauges whose values are read at a scrape: help text, and how several workers' gauges are
combined."""


class Telemetry:
    """The metrics of one service. The batcher, the gate and the routes report to it."""

    def __init__(self, shared: SharedMetrics | None = None) -> None:
        """`shared` holds the metrics of all workers; None where this process serves alone."""
        self._shared = shared
        self._own = CollectorRegistry()
        self._exposition = Exposition(self._own if shared is None else shared.collector())
        self.registry = CollectorRegistry()
        self.registry.register(self._exposition)
        self.in_flight = 0
        self.tracer: RequestTracer | None = None
        self._watched: dict[Gauge, Callable[[], float]] = {}
        self._pending: list[tuple[Callable[[float], None], float]] = []
        self._requests: dict[tuple[str, int], Any] = {}
        self._request_seconds = self._histogram(
            "request_seconds",
            "Time from the request's arrival to its answer's last byte, by route and status.",
            SECONDS_BUCKETS,
            ["route", "status"],
        )
        stages = self._histogram(
            "stage_seconds",
            "Time in a stage: queue and total once a request, the others once a batch.",
            SECONDS_BUCKETS,
            ["stage"],
        )
        self._stage = {name: stages.labels(name) for name in STAGES}
        self._make_batch_metrics()
        self._gauges = {name: self._gauge(name, *about) for name, about in WATCHED.items()}
        self._watch(
            self._gauge("inflight_requests", "Requests being answered."), lambda: self.in_flight
        )
        self._rejected = self._counter(
            "rejected", "Requests refused at admission, by reason (an error code).", "reason"
        )
        self._dropped = self._counter(
            "dropped", "Accepted requests that were dropped before compute, by reason.", "reason"
        )
        self._effort = self._counter(
            "effort", "Texts answered, by the operating point that answered them.", "point"
        )
        self._effort_children: dict[str, Any] = {}
        self._rejected_children: dict[str, Any] = {}
        self._key_requests = self._counter(
            "key_requests", "Requests that came with a known key, by the key's name.", "key"
        )
        self._key_children: dict[str, Any] = {}
        self._bundle_info = self._describe_bundles()
        self._cache = self._counter("cache", "Look-ups in the cache of answers.", "result")
        self._swaps = self._counter("bundle_swap", "Changes of bundles, by result.", "result")
        self._feedback = self._counter(
            "feedback", "Rows for the logs of feedback and answers, by result.", "result"
        )
        self._make_quality_metrics()
        self._make_background_metrics()
        if shared is None:
            ProcessCollector(registry=self._own)

    def _make_batch_metrics(self) -> None:
        self._batch_queries = self._histogram("batch_queries", "Texts in a batch.", QUERIES_BUCKETS)
        self._batch_tokens = self._histogram(
            "batch_tokens", "Tokens in a batch, padding not counted.", TOKENS_BUCKETS
        )
        self._batch_padding_ratio = self._histogram(
            "batch_padding_ratio",
            "Share of a batch's padded tokens that is padding.",
            RATIO_BUCKETS,
        )

    def _make_quality_metrics(self) -> None:
        self._live_recall_dropped = Counter(
            "astrolabe_live_recall_dropped",
            "Sampled answers that were not measured: the queue was full, or the search failed.",
            registry=self._own,
        )
        self._live_recall = self._gauge(
            "internal_recall", "Sums over samples.", "livesum", ["point", "what"]
        )
        self.shapes = Shapes(self._own)

    def _make_background_metrics(self) -> None:
        errors = self._counter(
            "background_errors", "Errors of work beside the requests, by task.", "task"
        )
        self._background_healthy = self._gauge(
            "background_healthy",
            "1 for a background task that works, 0 for one that fails or does not come back.",
            "livemin",
            ["task"],
        )
        self._no_descriptor = Counter(
            "astrolabe_no_descriptor",
            "Looks, four a second, that found no free file descriptor.",
            registry=self._own,
        )
        self.background = Background(lambda task: errors.labels(task).inc())

    def _describe_bundles(self) -> Gauge:
        return self._gauge(
            "bundle_info",
            "1 for a bundle being served, with the version that serves it; 0 once it is not.",
            "livemax",
            ["bundle_id", "name", "version"],
        )

    def request_finished(self, route: str, status: int, seconds: float) -> None:
        """Count one request; the gate calls this exactly once for each."""
        child = self._requests.get((route, status))
        if child is None:
            child = self._request_seconds.labels(route, str(status))
            self._requests[route, status] = child
        self._observe((child.observe, seconds))

    def answered(self, effort: str | None, n_queries: int, total_s: float) -> None:
        """Count the texts of one answer, and record the seconds from its request's arrival.

        `effort` is the operating point that searched. It is None where nothing was searched; then
        only the time counts.
        """
        total = (self._stage["total"].observe, total_s)
        if effort is None:
            self._observe(total)
            return
        child = self._effort_children.get(effort)
        if child is None:
            child = self._effort_children[effort] = self._effort.labels(effort)
        self._observe((child.inc, n_queries), total)

    def key_used(self, name: str) -> None:
        """Count one request that came with the key of this name."""
        child = self._key_children.get(name)
        if child is None:
            child = self._key_children[name] = self._key_requests.labels(name)
        self._observe((child.inc, 1))

    def served(self, predictions: Sequence[Prediction]) -> None:
        """Count the best scores and the text lengths of one answer."""
        self.shapes.add(predictions)

    def live_recall(self, point: str, window: Window) -> None:
        """Record the sums of the last samples of one operating point; from any thread."""
        for what in ("hits", "expected", "samples"):
            self._live_recall.labels(point, what).set(getattr(window, what))

    def live_recall_dropped(self) -> None:
        """Count a sampled answer that was not measured; from any thread."""
        self._live_recall_dropped.inc()

    def queued(self, seconds: float) -> None:
        """Record how many seconds one job waited for a lane."""
        self._observe((self._stage["queue"].observe, seconds))

    def batch_done(self, n_queries: int, timings: StageTimings) -> None:
        """Record the size of one batch and the time of each of its stages."""
        stage = self._stage
        padding = timings.n_padded_tokens - timings.n_tokens
        self._observe(
            *((stage[name].observe, seconds) for name, seconds in timings.stages.items()),
            (self._batch_queries.observe, n_queries),
            (self._batch_tokens.observe, timings.n_tokens),
            (self._batch_padding_ratio.observe, padding / max(1, timings.n_padded_tokens)),
        )

    def no_descriptor(self) -> None:
        """Count one look that found no free file descriptor."""
        self._no_descriptor.inc()

    def dropped(self, reason: str) -> None:
        """Count a job dropped before compute: expired, evicted, abandoned or shutting_down."""
        self._dropped.labels(reason).inc()

    def rejected(self, reason: str) -> None:
        """Count a request refused at admission, by its error code."""
        child = self._rejected_children.get(reason)
        if child is None:
            child = self._rejected_children[reason] = self._rejected.labels(reason)
        child.inc()

    def watch(self, **reads: Callable[[], int]) -> None:
        """Read the gauges of `WATCHED` from these functions at every scrape."""
        for name, read in reads.items():
            self._watch(self._gauges[name], read)

    def describe_bundle(
        self, *, bundle_id: str, name: str, version: str, serving: bool = True
    ) -> None:
        """Show a bundle and this service's version: 1 while the bundle serves, then 0."""
        self._bundle_info.labels(bundle_id, name, version).set(serving)

    def looked_up(self, result: str) -> None:
        """Count a look-up in the cache of answers: hit or miss."""
        self._cache.labels(result).inc()

    def feedback(self, result: str, n_rows: int) -> None:
        """Count rows of the logs: events accepted or refused, an answer or answer_dropped."""
        self._feedback.labels(result).inc(n_rows)

    def count_swap(self, result: str) -> None:
        """Count a change of bundles: activated, rolled_back, canary or failed."""
        self._swaps.labels(result).inc()

    def describe_device(self, *, requested: str, active: str) -> None:
        """Show the device of the settings and the one in use, as labels of a constant 1."""
        labels = {"requested": requested, "active": active}
        self._info("device_info", "The device asked for and the one in use.", labels)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        self.refresh()
        return generate_latest(self.registry)

    def add_collector(self, collector: Collector) -> None:
        """Add the metrics of this collector to every scrape."""
        self._exposition.beside.append(collector)

    def tick(self) -> None:
        """Let scrapes of other workers see this one's metrics.

        The server calls it twice a second.
        """
        if self._shared is not None:
            self.refresh()

    def refresh(self) -> None:
        """Record all that was collected, and read the watched gauges."""
        self._flush()
        self.shapes.flush()
        self.shapes.show_drift()
        for gauge, read in self._watched.items():
            gauge.set(read())
        for task, healthy in self.background.healthy().items():
            self._background_healthy.labels(task).set(healthy)

    def _observe(self, *observations: tuple[Callable[[float], None], float]) -> None:
        self._pending += observations
        if len(self._pending) >= FLUSH_AT:
            self._flush()

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        for record, value in pending:
            record(value)

    def _watch(self, gauge: Gauge, read: Callable[[], float]) -> None:
        # Not `set_function`: metrics in shared memory cannot call functions.
        self._watched[gauge] = read

    def _gauge(
        self,
        name: str,
        help_text: str,
        mode: GaugeMode = "livesum",
        labels: Sequence[str] = (),
    ) -> Gauge:
        return Gauge(
            f"astrolabe_{name}", help_text, labels, registry=self._own, multiprocess_mode=mode
        )

    def _histogram(
        self, name: str, help_text: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        return Histogram(
            f"astrolabe_{name}", help_text, labels, buckets=buckets, registry=self._own
        )

    def _counter(self, name: str, help_text: str, label: str) -> Counter:
        # prometheus_client appends `_total` to the name.
        return Counter(f"astrolabe_{name}", help_text, [label], registry=self._own)

    def _info(self, name: str, help_text: str, labels: dict[str, str]) -> None:
        self._gauge(name, help_text, "livemax", list(labels)).labels(**labels).set(1)
