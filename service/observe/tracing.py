"""Tracing: one OpenTelemetry span for each request, with child spans for its stages.

It is off unless `otel_endpoint` is set. The spans are sent by OTLP over HTTP. The span of a request
begins with the request, so that log lines can name its trace. The spans of the stages are added
after the answer, from times that are measured in any case. They follow each other without a gap
from the start of the request. All requests of a batch get the same times of all stages but the
queue. No span holds a text, a key or a header.

OpenTelemetry's own variables `OTEL_...` (service name, resource attributes, exporter headers,
batching) work as its documentation says.
"""

import importlib.util
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from service.background import Background, LastResort
from service.core.batching.job import Answer
from service.errors import SettingsInvalid
from service.settings.settings import Settings
from service.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span

NAME: Final = "astrolabe"
TRACES_PATH: Final = "/v1/traces"
EXPORT_TIMEOUT_S: Final = 2.0
"""A choice: at the end of the process the last spans may delay it by this long."""

TASK: Final = "export-traces"
"""The background task's name in logs and metrics."""

UNTRACED_PATHS: Final = frozenset({"/livez", "/readyz", "/metrics"})
FIRST_SERVER_ERROR: Final = 500


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """The open span of a request.

    `trace_id` has 32 hexadecimal digits, `started_ns` is Unix time.
    """

    span: "Span"
    trace_id: str
    started_ns: int


class RequestTracer:
    """Makes spans of requests. For the event loop's thread; OpenTelemetry sends from its own."""

    def __init__(self, provider: "TracerProvider") -> None:
        """`provider` samples the spans and sends them."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer(NAME, __version__)
        self._incoming = TraceContextTextMapPropagator()

    def begin(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> RequestTrace | None:
        """Start the span of a request, or return None for a probe or a scrape.

        The span belongs to the trace that the header `traceparent` names (W3C Trace Context).
        """
        from opentelemetry.trace import SpanKind, format_trace_id

        if path in UNTRACED_PATHS:
            return None
        carrier = {
            name: headers[name.encode()].decode("latin-1")
            for name in ("traceparent", "tracestate")
            if name.encode() in headers
        }
        started_ns = time.time_ns()
        span = self._tracer.start_span(
            method, self._incoming.extract(carrier), SpanKind.SERVER, start_time=started_ns
        )
        return RequestTrace(span, format_trace_id(span.get_span_context().trace_id), started_ns)

    def finish(
        self, trace: RequestTrace, method: str, route: str, status: int, answer: Answer | None
    ) -> None:
        """End the span with the route and the status, and add the stages of its answer."""
        from opentelemetry.trace import StatusCode

        span = trace.span
        if span.is_recording():
            span.update_name(f"{method} {route}")
            span.set_attributes(
                {
                    "http.request.method": method,
                    "http.route": route,
                    "http.response.status_code": status,
                }
            )
            if status >= FIRST_SERVER_ERROR:
                span.set_status(StatusCode.ERROR)
            if answer is not None:
                self._add_stages(trace, answer)
        span.end()

    def shutdown(self) -> None:
        """Send the last spans, and give up after `EXPORT_TIMEOUT_S` if no one accepts them."""
        self._provider.force_flush(int(EXPORT_TIMEOUT_S * 1000))
        self._provider.shutdown()

    def _add_stages(self, trace: RequestTrace, answer: Answer) -> None:
        from opentelemetry.trace import set_span_in_context

        context = set_span_in_context(trace.span)
        timings, moment = answer.timings, trace.started_ns
        attributes: dict[str, str | int] = {
            "astrolabe.effort": answer.queries[0].effort,
            "astrolabe.queries": len(answer.queries),
            "astrolabe.batch_tokens": timings.n_tokens,
        }
        trace.span.set_attributes(attributes)
        for name, seconds in {"queue": answer.queue_s, **timings.stages}.items():
            end = moment + int(seconds * 1e9)
            self._tracer.start_span(name, context, start_time=moment).end(end)
            moment = end


class WatchedExporter:
    """Sends spans by another exporter, and shows whether the collector takes them.

    OpenTelemetry calls it from its own thread.
    """

    def __init__(self, exporter: "SpanExporter", resort: LastResort) -> None:
        self._exporter = exporter
        self._resort = resort

    def export(self, spans: "Sequence[ReadableSpan]") -> "SpanExportResult":
        """Send spans; those that the collector does not take are dropped."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        try:
            result = self._exporter.export(spans)
            if result is not SpanExportResult.SUCCESS:
                raise ConnectionError("the collector of ASTROLABE_OTEL_ENDPOINT took no spans")
        except Exception as exc:
            self._resort.failed(exc)
            return SpanExportResult.FAILURE
        self._resort.worked()
        return result

    def shutdown(self) -> None:
        """End the other exporter."""
        self._exporter.shutdown()


def open_tracer(settings: Settings, background: Background) -> RequestTracer | None:
    """The tracer that the settings describe; None where tracing is off. Raises SettingsInvalid.

    Call it after a fork, because it starts a thread. Spans that no collector takes count as errors
    in `background`.
    """
    if settings.otel_endpoint is None:
        return None
    check_tracing(settings)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # While the collector is away OpenTelemetry writes a line for every batch. One is enough.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    exporter = OTLPSpanExporter(
        settings.otel_endpoint.rstrip("/").removesuffix(TRACES_PATH) + TRACES_PATH,
        timeout=EXPORT_TIMEOUT_S,
    )
    watched: Any = WatchedExporter(exporter, background.last_resort(TASK))
    return RequestTracer(provider_of(settings.otel_sample_ratio, BatchSpanProcessor(watched)))


def provider_of(sample_ratio: float, processor: Any) -> "TracerProvider":
    """A provider that samples this share of the traces that begin here.

    It samples the trace of a caller where the caller does. `processor` is a SpanProcessor.
    """
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    # The detector reads OTEL_SERVICE_NAME and has the last word. Resource.create alone would let
    # the name given here win over it.
    resource = Resource.create({"service.version": __version__, "service.name": NAME})
    resource = resource.merge(OTELResourceDetector().detect())
    provider = TracerProvider(ParentBasedTraceIdRatio(sample_ratio), resource)
    provider.add_span_processor(processor)
    return provider


def check_tracing(settings: Settings) -> None:
    """Raise SettingsInvalid where tracing is on and the packages for it are not installed."""
    if settings.otel_endpoint is None:
        return
    try:
        exporter = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:
        exporter = None
    if exporter is None or importlib.util.find_spec("opentelemetry.sdk") is None:
        raise SettingsInvalid(
            "otel_endpoint is set, but OpenTelemetry is not installed: install astrolabe[otel], or "
            "leave ASTROLABE_OTEL_ENDPOINT out"
        )
