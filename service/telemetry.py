"""Every metric name and bucket of the service, and its logs. Dashboards may use only these names.

One `Telemetry` owns one registry, so two services can live in a process and tests see only their
own counts. It is fed from the event loop's thread; children of labelled metrics are looked up once.
"""

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, Final, TextIO

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from service.core.types import StageTimings

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
STAGES: Final = ("queue", "tokenize", "encode", "search", "total")

SECONDS_BUCKETS: Final = (
    *(0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.00075),
    *(0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
QUERIES_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS_BUCKETS: Final = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
RATIO_BUCKETS: Final = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

FLUSH_AT: Final = 64
"""Observations kept back and then made together: made one by one, between other work and on cold
processor caches, they took a seventh of the service's CPU at one connection. A scrape sees all."""

request_id_of_task: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that the current task answers; every log line inside carries it."""


class Telemetry:
    """The metrics of one service; `service.core.batcher` and `service.api` report to it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.in_flight = 0
        self._pending: list[tuple[Callable[[float], None], float]] = []
        self._requests: dict[tuple[str, int], Any] = {}
        self._request_seconds = Histogram(
            "astrolabe_request_seconds",
            "Time from the request's arrival to its answer's last byte, by route and status.",
            ["route", "status"],
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        stages = Histogram(
            "astrolabe_stage_seconds",
            "Time in a stage: queue and total once a request, the others once a batch.",
            ["stage"],
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self._stage = {name: stages.labels(name) for name in STAGES}
        self._batch_queries = Histogram(
            "astrolabe_batch_queries",
            "Texts in a batch.",
            buckets=QUERIES_BUCKETS,
            registry=self.registry,
        )
        self._batch_tokens = Histogram(
            "astrolabe_batch_tokens",
            "Tokens in a batch, padding not counted.",
            buckets=TOKENS_BUCKETS,
            registry=self.registry,
        )
        self._batch_padding_ratio = Histogram(
            "astrolabe_batch_padding_ratio",
            "Share of a batch's padded tokens that is padding.",
            buckets=RATIO_BUCKETS,
            registry=self.registry,
        )
        self._queue_tokens = self._gauge("queue_tokens", "Estimated tokens that wait for a lane.")
        self._gauge("inflight_requests", "Requests being answered.").set_function(
            lambda: self.in_flight
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
        self._key_requests = self._counter(
            "key_requests", "Requests that came with a known key, by the key's name.", "key"
        )
        self._key_children: dict[str, Any] = {}
        self._effort_steps_down = self._gauge(
            "effort_steps_down",
            "Steps by which the ceiling on effort is lowered; 0 where it is not.",
        )
        self._bundle_info = self._describe_bundles()
        self._cache = self._counter("cache", "Look-ups in the cache of answers.", "result")
        self._swaps = self._counter("bundle_swap", "Changes of bundles, by result.", "result")
        ProcessCollector(registry=self.registry)

    def _describe_bundles(self) -> Gauge:
        return Gauge(
            "astrolabe_bundle_info",
            "1 for a bundle being served, with the version that serves it; 0 once it is not.",
            ["bundle_id", "name", "version"],
            registry=self.registry,
        )

    def request_finished(self, route: str, status: int, seconds: float) -> None:
        """Count one request; called exactly once for each."""
        child = self._requests.get((route, status))
        if child is None:
            child = self._request_seconds.labels(route, str(status))
            self._requests[route, status] = child
        self._note((child.observe, seconds))

    def answered(self, effort: str, n_queries: int, total_s: float) -> None:
        """Count the texts of one answer and the time it took in all."""
        child = self._effort_children.get(effort)
        if child is None:
            child = self._effort_children[effort] = self._effort.labels(effort)
        self._note((child.inc, n_queries), (self._stage["total"].observe, total_s))

    def key_used(self, name: str) -> None:
        """Count one request that came with the key of this name."""
        child = self._key_children.get(name)
        if child is None:
            child = self._key_children[name] = self._key_requests.labels(name)
        self._note((child.inc, 1))

    def queued(self, seconds: float) -> None:
        """Record how long one job waited for its lane."""
        self._note((self._stage["queue"].observe, seconds))

    def batch_done(self, n_queries: int, timings: StageTimings) -> None:
        """Record what one batch held and what each stage took."""
        stage = self._stage
        padding = timings.n_padded_tokens - timings.n_tokens
        self._note(
            (stage["tokenize"].observe, timings.tokenize_s),
            (stage["encode"].observe, timings.encode_s),
            (stage["search"].observe, timings.search_s),
            (self._batch_queries.observe, n_queries),
            (self._batch_tokens.observe, timings.n_tokens),
            (self._batch_padding_ratio.observe, padding / max(1, timings.n_padded_tokens)),
        )

    def dropped(self, reason: str) -> None:
        """Count a job dropped before compute: expired, abandoned or shutting_down."""
        self._dropped.labels(reason).inc()

    def rejected(self, reason: str) -> None:
        """Count a request refused at admission, by its error code."""
        self._rejected.labels(reason).inc()

    def watch_queue(self, tokens: Callable[[], int]) -> None:
        """Read the queue gauge from here at every scrape."""
        self._queue_tokens.set_function(tokens)

    def watch_effort(self, steps_down: Callable[[], int]) -> None:
        """Read the gauge of the ceiling on effort from here at every scrape."""
        self._effort_steps_down.set_function(steps_down)

    def describe_bundle(
        self, *, bundle_id: str, name: str, version: str, serving: bool = True
    ) -> None:
        """Name a bundle and the code that serves it: 1 while it is being served, then 0."""
        self._bundle_info.labels(bundle_id, name, version).set(serving)

    def looked_up(self, result: str) -> None:
        """Count a look-up in the cache of answers: hit or miss."""
        self._cache.labels(result).inc()

    def swapped(self, result: str) -> None:
        """Count a change of bundles: activated, rolled_back, canary or failed."""
        self._swaps.labels(result).inc()

    def describe_device(self, *, requested: str, active: str) -> None:
        """Name the device asked for and the one in use, as labels of a constant 1."""
        labels = {"requested": requested, "active": active}
        self._info("device_info", "The device asked for and the one in use.", labels)

    def render(self) -> bytes:
        """The registry in Prometheus' text format."""
        self._flush()
        return generate_latest(self.registry)

    def _note(self, *notes: tuple[Callable[[float], None], float]) -> None:
        self._pending += notes
        if len(self._pending) >= FLUSH_AT:
            self._flush()

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        for record, value in pending:
            record(value)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(f"astrolabe_{name}", help_text, registry=self.registry)

    def _counter(self, name: str, help_text: str, label: str) -> Counter:
        # prometheus_client appends _total itself
        return Counter(f"astrolabe_{name}", help_text, [label], registry=self.registry)

    def _info(self, name: str, help_text: str, labels: dict[str, str]) -> None:
        gauge = Gauge(f"astrolabe_{name}", help_text, list(labels), registry=self.registry)
        gauge.labels(**labels).set(1)


class JsonFormatter(logging.Formatter):
    """One JSON object a line; `extra={"fields": {...}}` of a log call becomes members of it."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; a newline in a value can never start a second line."""
        entry = _entry_of(record)
        if record.exc_info:
            entry["exception"] = _exception_of(record)
        return json.dumps(entry, default=str)


class TextFormatter(logging.Formatter):
    """`time level logger message key=value ...`, for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, a traceback below it where there is one."""
        entry = _entry_of(record)
        head = " ".join(str(entry.pop(key)) for key in ("time", "level", "logger", "message"))
        line = " ".join([head, *(f"{key}={value!r}" for key, value in entry.items())])
        line = line.replace("\r", "\\r").replace("\n", "\\n")
        return f"{line}\n{_exception_of(record)}" if record.exc_info else line


def configure_logging(level: str, style: str, stream: TextIO | None = None) -> None:
    """Send every log line of the process, uvicorn's too, to standard error in one format."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # uvicorn's start and stop lines at info repeat ours.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))


def _exception_of(record: logging.LogRecord) -> str:
    """The traceback; without the exceptions' messages where one quotes a text of `private`.

    A log call passes `extra={"private": texts}` where an exception may have seen what users sent.
    """
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return ""
    shown = "".join(traceback.format_exception(error)).rstrip()
    folded = shown.casefold()
    private: Iterable[str] = getattr(record, "private", ())
    forms = {form.casefold() for text in private for form in (text, repr(text)[1:-1]) if text}
    if not any(form in folded for form in forms):
        return shown
    parts = []
    cause: BaseException | None = error
    while cause is not None:
        frames = "".join(traceback.format_tb(cause.__traceback__))
        parts.append(f"{frames}{type(cause).__name__}: [withheld: a message here quotes a query]")
        cause = cause.__cause__ or cause.__context__
    return "\n".join(reversed(parts))


def _entry_of(record: logging.LogRecord) -> dict[str, Any]:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    entry: dict[str, Any] = {
        "time": f"{moment}.{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    }
    if request_id := request_id_of_task.get():
        entry["request_id"] = request_id
    fields = getattr(record, "fields", None)
    return entry | fields if isinstance(fields, dict) else entry
