"""Tracing: one OpenTelemetry span a request, its stages below it, sent by OTLP over HTTP.

Off unless `otel_endpoint` is set, and then paid for by traced requests only. The span of a request
begins with it, so that log lines can name its trace; the stages are added when the answer has gone,
from times that were measured anyway. They are laid end to end from the request's start; those of a
batch are the same for all its requests. No span holds a text, a key or a header.

The other `OTEL_` variables (service name, resource attributes, exporter headers, batching) are
OpenTelemetry's own and mean what its documentation says.
"""

import importlib.util
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from service.core.batching.job import Answer
from service.errors import SettingsInvalid
from service.settings.settings import Settings
from service.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

NAME: Final = "astrolabe"
TRACES_PATH: Final = "/v1/traces"
EXPORT_TIMEOUT_S: Final = 2.0
UNTRACED: Final = frozenset({"/livez", "/readyz", "/metrics"})
FIRST_SERVER_ERROR: Final = 500


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """A request's span while it lasts; `trace_id` is 32 hexadecimal digits."""

    span: "Span"
    trace_id: str
    started_ns: int


class RequestTracer:
    """Makes spans of requests. For the event loop's thread; a thread of its own sends them."""

    def __init__(self, provider: "TracerProvider") -> None:
        """Spans go where `provider` sends them."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer(NAME, __version__)
        self._incoming = TraceContextTextMapPropagator()

    def begin(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> RequestTrace | None:
        """The span of a request, in the trace that its `traceparent` names; None for probes."""
        from opentelemetry.trace import SpanKind, format_trace_id

        if path in UNTRACED:
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
        """End the span with what became of the request, and add its stages."""
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
        """Send what waits; gives up where nobody takes it."""
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
        stages = {
            "queue": answer.queue_s,
            "tokenize": timings.tokenize_s,
            "encode": timings.encode_s,
            "search": timings.search_s,
        }
        for name, seconds in stages.items():
            end = moment + int(seconds * 1e9)
            self._tracer.start_span(name, context, start_time=moment).end(end)
            moment = end


def open_tracer(settings: Settings) -> RequestTracer | None:
    """The tracer that the settings ask for, None for none; raises SettingsInvalid.

    After any fork: it starts a thread.
    """
    if settings.otel_endpoint is None:
        return None
    check_tracing(settings)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # Its own warnings about an endpoint that is away would come with every batch, and tracebacks.
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    exporter = OTLPSpanExporter(
        settings.otel_endpoint.rstrip("/").removesuffix(TRACES_PATH) + TRACES_PATH,
        timeout=EXPORT_TIMEOUT_S,
    )
    return RequestTracer(provider_of(settings.otel_sample_ratio, BatchSpanProcessor(exporter)))


def provider_of(sample_ratio: float, processor: Any) -> "TracerProvider":
    """A provider that samples new traces at this ratio and follows the caller's choice for others.

    `processor` is a SpanProcessor.
    """
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    # Not Resource.create alone: that calls a service without OTEL_SERVICE_NAME "unknown_service".
    resource = Resource.create({"service.version": __version__, "service.name": NAME})
    resource = resource.merge(OTELResourceDetector().detect())
    provider = TracerProvider(ParentBasedTraceIdRatio(sample_ratio), resource)
    provider.add_span_processor(processor)
    return provider


def check_tracing(settings: Settings) -> None:
    """Refuse to trace without the packages for it; raises SettingsInvalid."""
    if settings.otel_endpoint is None:
        return
    try:
        found = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:
        found = None
    if found is None or importlib.util.find_spec("opentelemetry.sdk") is None:
        raise SettingsInvalid(
            "otel_endpoint is set, but OpenTelemetry is not installed: install astrolabe[otel], or "
            "leave ASTROLABE_OTEL_ENDPOINT out"
        )
