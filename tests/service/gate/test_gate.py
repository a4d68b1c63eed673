import json
import logging

import pytest

from service.observe.logs import JsonFormatter, TextFormatter
from tests.support.fakes import FakePredict, running

pytestmark = pytest.mark.anyio


async def test_given_request_id_is_echoed() -> None:
    async with running() as service:
        answer = await service.recommend({"query": "a"}, x_request_id="order-17/b")
    assert answer.headers["x-request-id"] == "order-17/b"


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "caf\u00e9"])
async def test_unfit_request_id_is_replaced(given: str) -> None:
    async with running() as service:
        answer = await service.client.get("/livez", headers={b"x-request-id": given.encode()})
    assert answer.headers["x-request-id"] not in ("", given)


async def test_request_ids_made_here_differ() -> None:
    async with running() as service:
        made = {(await service.client.get("/livez")).headers["x-request-id"] for _ in range(5)}
    assert len(made) == 5


async def test_each_request_is_counted_exactly_once() -> None:
    async with running() as service:
        for _ in range(3):
            await service.recommend({"query": "a"})
        await service.recommend({"query": ["a", "b"]})
        await service.recommend(b"{")
        await service.client.get("/nowhere")
        await service.client.get("/problems/queue_full")
        sample = "astrolabe_request_seconds_count"
        assert await service.metric(f'{sample}{{route="/v1/recommend",status="200"}}') == 4
        assert await service.metric(f'{sample}{{route="/v1/recommend",status="400"}}') == 1
        assert await service.metric(f'{sample}{{route="unmatched",status="404"}}') == 1
        assert await service.metric(f'{sample}{{route="/problems/{{code}}",status="200"}}') == 1
        assert await service.metric('astrolabe_effort_total{point="balanced"}') == 5
        assert await service.metric('astrolabe_stage_seconds_count{stage="queue"}') == 4
        assert await service.metric('astrolabe_stage_seconds_count{stage="total"}') == 4
        assert await service.metric("astrolabe_inflight_requests") == 0


async def test_declared_body_over_the_cap_is_413_and_closes() -> None:
    async with running(max_body_bytes=10) as service:
        answer = await service.recommend({"query": "much too long"})
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("asked", ["0", "-5", "1.5", "soon", "30001", "9" * 40, "\u00b2"])
async def test_unfit_deadline_is_422(asked: str) -> None:
    async with running() as service:
        headers = {b"x-request-timeout-ms": asked.encode("latin-1")}
        answer = await service.client.get("/v1/recommend?q=a", headers=headers)
    assert answer.status_code == 422
    assert "from 1 to 30000" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer open sesame", 401),
        ("Bearer wrong", 401),
        ("Basic sesame", 401),
        ("", 401),
        ("Bearer sesame", 200),
        ("bearer  sesame", 200),
    ],
)
async def test_key_is_asked_for_and_compared(header: str, status: int) -> None:
    async with running(api_key="sesame") as service:
        answer = await service.recommend({"query": "a"}, authorization=header)
    assert answer.status_code == status
    assert status == 200 or answer.headers["www-authenticate"] == "Bearer"


async def test_probes_metrics_and_documentation_need_no_key() -> None:
    async with running(api_key="sesame") as service:
        for path in ("/livez", "/readyz", "/metrics", "/docs", "/openapi.json"):
            assert (await service.client.get(path)).status_code == 200, path
        for path in ("/v1/info", "/v1/recommend?q=a", "/nowhere"):
            assert (await service.client.get(path)).status_code == 401, path


async def test_unhandled_exception_is_a_500_problem_and_one_log_entry(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as service:

        def broken() -> bytes:
            raise ZeroDivisionError("internals")

        service.app.serving.telemetry.render = broken  # type: ignore[method-assign]
        answer = await service.client.get("/metrics")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "internals" not in answer.text
    assert [record.message for record in caplog.records] == ["unhandled exception"]


def _request_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    lines = [r for r in caplog.records if r.message == "request"]
    return [json.loads(JsonFormatter().format(record)) for record in lines]


@pytest.mark.parametrize(
    ("wanted", "statuses"), [("all", [200, 400]), ("errors", [400]), ("none", [])]
)
async def test_log_requests_chooses_what_is_logged(
    caplog: pytest.LogCaptureFixture, wanted: str, statuses: list[int]
) -> None:
    caplog.set_level(logging.INFO)
    async with running(log_requests=wanted) as service:
        await service.recommend({"query": "a"})
        await service.recommend(b"{")
    assert [line["status"] for line in _request_lines(caplog)] == statuses


async def test_query_text_and_key_are_never_logged_by_default(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with running(log_requests="all", api_key="sesame") as service:
        await service.recommend({"query": "my illness"}, authorization="Bearer sesame")
        await service.client.get(
            "/v1/recommend?q=my+illness", headers={"authorization": "Bearer sesame"}
        )
        await service.recommend({"query": "my illness"}, authorization="Bearer not-it")
    ours = [r for r in caplog.records if r.name.startswith("service")]
    text = "".join(JsonFormatter().format(record) for record in ours)
    assert len(ours) == 3
    assert "illness" not in text
    assert "sesame" not in text
    assert "not-it" not in text


async def test_query_text_is_logged_where_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running(log_requests="all", log_queries=True) as service:
        await service.recommend({"query": ["a", "b"]})
    assert _request_lines(caplog)[0]["queries"] == ["a", "b"]


async def test_answers_while_draining_close_their_connection() -> None:
    async with running() as service:
        service.app.serving.draining = True
        answer = await service.recommend({"query": "a"})
        ready = await service.client.get("/readyz")
        live = await service.client.get("/livez")
    assert answer.status_code == 200
    assert answer.headers["connection"] == "close"
    assert (ready.status_code, ready.json()["code"]) == (503, "shutting_down")
    assert live.status_code == 200


async def test_pages_carry_headers_that_confine_them() -> None:
    async with running() as service:
        page = await service.client.get("/docs")
        data = await service.client.get("/v1/info")
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["x-frame-options"] == "DENY"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "x-frame-options" not in data.headers


def _quoting(text: str) -> RuntimeError:
    """An error that quotes a text, caused by one that quotes it otherwise."""
    try:
        try:
            raise KeyError(text)
        except KeyError as cause:
            raise RuntimeError(f"cannot encode {text.upper()!r}") from cause
    except RuntimeError as error:
        return error


@pytest.mark.parametrize("text", ["my rare illness", 'with "quotes" and\nlines', "\u017elut\u00fd"])
async def test_no_log_line_carries_a_query_not_even_a_traceback(
    caplog: pytest.LogCaptureFixture, text: str
) -> None:
    caplog.set_level(logging.DEBUG)
    predict = FakePredict()
    predict.error = _quoting(text)
    async with running(predict, log_requests="all") as service:
        assert (await service.recommend({"query": text})).status_code == 500
        assert (await service.recommend({"query": [text, text]})).status_code == 500
        await service.client.get("/v1/recommend", params={"q": text})
        await service.client.get("/v1/recommend", params={"q": text, "k": "many"})
        await service.recommend({"query": text, "surprise": text})
        await service.recommend({"query": text, "effort": text})
    ours = [r for r in caplog.records if not r.name.startswith("httpx")]
    assert any(record.exc_info for record in ours)
    for formatter in (JsonFormatter(), TextFormatter()):
        lines = "".join(formatter.format(record) for record in ours).casefold()
        assert "withheld" in lines
        assert "_quoting" in lines  # where it broke is still said
        for form in (text, repr(text)[1:-1], json.dumps(text)[1:-1]):
            assert form.casefold() not in lines


async def test_the_message_of_an_error_that_quotes_nobody_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    predict = FakePredict()
    predict.error = RuntimeError("out of memory on device 0")
    async with running(predict) as service:
        await service.recommend({"query": "my rare illness"})
    assert "out of memory on device 0" in JsonFormatter().format(caplog.records[-1])
