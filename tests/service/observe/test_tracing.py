"""Traces as a collector would see them, through the whole application and the SDK's own memory."""

import io
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.background import Background
from service.errors import SettingsInvalid
from service.observe import tracing
from service.observe.logs import JsonFormatter
from service.observe.tracing import (
    TRACES_PATH,
    RequestTracer,
    check_tracing,
    open_tracer,
    provider_of,
)
from tests.support.fakes import Running, fake_settings, running
from tests.support.status_server import status_server

pytestmark = pytest.mark.anyio

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@dataclass
class Traced:
    service: Running
    exporter: InMemorySpanExporter

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}


@asynccontextmanager
async def traced(ratio: float = 1.0, **settings: object) -> AsyncIterator[Traced]:
    exporter = InMemorySpanExporter()
    tracer = RequestTracer(provider_of(ratio, SimpleSpanProcessor(exporter)))
    async with running(**settings) as service:
        service.app.serving.telemetry.tracer = tracer
        yield Traced(service, exporter)
    tracer.shutdown()


async def test_a_request_is_one_span_with_its_stages_end_to_end_below_it() -> None:
    async with traced() as run:
        await run.service.recommend({"query": "a secret text", "effort": "fast"})
        spans = run.spans()
    request = spans["POST /v1/recommend"]
    assert list(spans) == ["queue", "tokenize", "encode", "search", "rerank", "POST /v1/recommend"]
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["astrolabe.effort"] == "fast"
    assert request.parent is None
    stages = [spans[name] for name in ("queue", "tokenize", "encode", "search", "rerank")]
    assert {span.parent.span_id for span in stages if span.parent} == {request.context.span_id}
    assert stages[0].start_time == request.start_time
    assert [s.end_time for s in stages[:-1]] == [s.start_time for s in stages[1:]]
    assert stages[2].end_time is not None
    assert stages[2].start_time is not None
    assert stages[2].end_time - stages[2].start_time == 2_000_000
    assert "secret" not in "".join(span.to_json() for span in spans.values())


async def test_the_callers_trace_goes_on_and_is_named_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("service.gate.gate")
    logger.addHandler(handler)
    try:
        async with traced(log_requests="errors") as run:
            await run.service.recommend({"query": ""}, traceparent=f"00-{TRACE}-{PARENT}-01")
            request = run.spans()["POST /v1/recommend"]
    finally:
        logger.removeHandler(handler)
    assert request.context is not None
    assert f"{request.context.trace_id:032x}" == TRACE
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT
    assert json.loads(stream.getvalue())["trace_id"] == TRACE


async def test_a_caller_that_does_not_sample_is_obeyed_and_so_is_the_ratio() -> None:
    async with traced() as run:
        await run.service.recommend({"query": "a"}, traceparent=f"00-{TRACE}-{PARENT}-00")
        assert not run.spans()
    async with traced(ratio=0.0) as run:
        await run.service.recommend({"query": "a"})
        assert not run.spans()


async def test_errors_are_marked_and_probes_are_not_traced() -> None:
    async with traced() as run:
        await run.service.client.get("/readyz")
        await run.service.client.get("/metrics")
        assert not run.spans()
        run.service.predict.error = RuntimeError("broken")
        assert (await run.service.recommend({"query": "a"})).status_code == 500
        assert (await run.service.recommend({"query": ""})).status_code == 422
        statuses = [span.status.is_ok for span in run.exporter.get_finished_spans()]
    assert statuses == [False, True]


async def test_nothing_is_traced_unless_asked_for() -> None:
    assert open_tracer(fake_settings(), Background()) is None
    check_tracing(fake_settings())


def test_spans_that_no_collector_takes_show_once_in_the_log_and_in_the_metrics(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "service.background")
    counted: list[str] = []
    background = Background(counted.append)
    said = []
    for status in (400, 400, 200):
        caplog.clear()
        with status_server({TRACES_PATH: status}) as port:
            endpoint = f"http://127.0.0.1:{port}"
            tracer = open_tracer(fake_settings(otel_endpoint=endpoint), background)
            assert tracer is not None
            trace = tracer.begin("GET", "/v1/info", {})
            assert trace is not None
            tracer.finish(trace, "GET", "/v1/info", 200, None)
            tracer.shutdown()
        said.append([record.message for record in caplog.records])
        assert background.healthy() == {"export-traces": status == 200}
    assert counted == ["export-traces"] * 2
    assert said == [["a background task fails"], [], ["a background task works again"]]


def test_asked_for_and_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(tracing.importlib.util, "find_spec", missing)
    with pytest.raises(SettingsInvalid, match=r"install astrolabe\[otel\]"):
        check_tracing(fake_settings(otel_endpoint="http://127.0.0.1:4318"))


def test_outside_names_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-search")
    provider = provider_of(1.0, SimpleSpanProcessor(InMemorySpanExporter()))
    assert provider.resource.attributes["service.name"] == "shop-search"
    provider.shutdown()
