"""What the endpoints share: one deadline, a client that leaves, the cache, and equal counts."""

import asyncio
from typing import Any

import pytest

from service.gate.exchange import Exchange
from tests.support.fakes import JSON, running
from tests.support.garbage import leaving_none
from tests.support.live import served
from tests.support.raw_http import RawRequest, raw
from tests.support.tiny_bundle import DIM

pytestmark = pytest.mark.anyio

MODEL = "tiny"
TEXT = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["moby dick"]}
INFER = f"/v2/models/{MODEL}/infer"
RECOMMENDS: list[tuple[str, str, Any]] = [
    ("POST", "/v1/recommend", {"query": "moby dick"}),
    ("GET", "/v1/recommend?q=moby+dick", None),
    ("POST", "/v1/recommend/by-embedding", {"embedding": [1.0] * DIM}),
    ("POST", INFER, {"inputs": [TEXT]}),
]
EMBEDS: list[tuple[str, str, Any]] = [
    ("POST", "/v1/embed", {"input": "moby dick"}),
    ("POST", "/v1/embeddings", {"input": "moby dick", "model": MODEL}),
    ("POST", INFER, {"inputs": [TEXT], "outputs": [{"name": "embedding"}]}),
]
HEAD = b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


async def test_client_that_leaves_while_sending_is_not_answered_for() -> None:
    async with running() as service:
        leaver = RawRequest(service)
        leaver.body(b'{"query"', more=True)
        leaver.hang_up()
        assert await leaver.status() == 499


async def test_body_in_parts_is_put_together() -> None:
    async with running() as service:
        request = RawRequest(service)
        for part in (b'{"que', b'ry":"a', b""):
            request.body(part, more=True)
        request.body(b'"}')
        assert await request.status() == 200


@pytest.mark.parametrize("timeout_ms", [b"1", b"10"])
async def test_client_that_never_finishes_sending_is_504(timeout_ms: bytes) -> None:
    async with running() as service:
        request = RawRequest(service, (b"x-request-timeout-ms", timeout_ms))
        request.body(b'{"query"', more=True)
        assert await request.status() == 504


async def test_cancelling_the_request_from_outside_stays_a_cancellation() -> None:
    async with running() as service:
        service.predict.hold()
        request = RawRequest(service)
        request.body(b'{"query":"a"}')
        await service.predict.wait_entered()
        request.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request.task
        counted = await service.metric(
            'astrolabe_request_seconds_count{route="/v1/recommend",status="499"}'
        )
    assert counted == 1


async def test_chunked_body_over_the_cap_is_413() -> None:
    async with running(max_body_bytes=10) as service:
        request = RawRequest(service, (b"transfer-encoding", b"chunked"))
        request.body(b"12345", more=True)
        request.body(b"678901", more=True)
        assert await request.status() == 413


@pytest.mark.parametrize("priority", [b"interactive", b"bulk"])
async def test_client_that_leaves_while_waiting_is_dropped_before_compute(priority: bytes) -> None:
    async with served() as run:
        run.predict.hold()
        busy = run.ask()
        await run.predict.wait_entered()
        async with raw(run) as leaver:
            head = HEAD + b"x-request-priority: %s\r\ncontent-length: 18\r\n\r\n" % priority
            await leaver.says(head + b'{"query":"leaver"}')
            while not run.batcher.waiting_tokens:
                await asyncio.sleep(0.001)
        while run.app.serving.telemetry.in_flight > 1:
            await asyncio.sleep(0.001)
        run.predict.release()
        assert (await busy).status_code == 200
        page = (await run.client.get("/metrics")).text
    assert run.predict.texts() == ["a"]
    assert 'astrolabe_dropped_total{reason="abandoned"} 1.0' in page


@pytest.mark.parametrize("timeout_ms", [None, 20])
async def test_a_slow_request_leaves_nothing_for_the_garbage_collector(
    timeout_ms: int | None,
) -> None:
    headers = {} if timeout_ms is None else {"x-request-timeout-ms": str(timeout_ms)}
    async with served() as run:
        with leaving_none(Exchange, still_held=1):  # the connection holds its last one
            run.predict.hold()
            slow = asyncio.create_task(
                run.client.post("/v1/recommend", json={"query": "a"}, headers=headers)
            )
            if timeout_ms is None:
                await run.predict.wait_entered()
                run.predict.release()
            assert (await slow).status_code == (200 if timeout_ms is None else 504)
            run.predict.release()
            assert (await run.client.get("/livez")).status_code == 200


@pytest.mark.parametrize(("method", "path", "body"), RECOMMENDS + EMBEDS)
async def test_every_endpoint_counts_times_and_caches_alike(
    method: str, path: str, body: Any
) -> None:
    async with running(cache_entries=4) as service:
        first = await service.client.request(method, path, json=body)
        again = await service.client.request(method, path, json=body)
        assert (first.status_code, again.status_code) == (200, 200), first.text
        assert again.content == first.content
        assert first.headers["server-timing"].startswith("queue;dur=")
        assert again.headers["server-timing"].startswith("cache;desc=hit")
        for result in ("miss", "hit"):
            assert await service.metric(f'astrolabe_cache_total{{result="{result}"}}') == 1
        assert await service.metric('astrolabe_stage_seconds_count{stage="total"}') == 2
        points = await service.metric('astrolabe_effort_total{point="balanced"}')
        scores = await service.metric("astrolabe_top_score_count")
        lengths = await service.metric("astrolabe_query_tokens_count")
    searches = (method, path, body) in RECOMMENDS
    has_text = "by-embedding" not in path
    assert points == (2 if searches else 0)
    assert scores == (1 if searches else 0)
    assert lengths == (1 if searches and has_text else 0)


async def test_the_cache_tells_endpoints_apart() -> None:
    body = b'{"input":"moby dick","model":"%s"}' % MODEL.encode()
    async with running(cache_entries=4) as service:
        own = await service.client.post("/v1/embed", content=body, headers=JSON)
        openai = await service.client.post("/v1/embeddings", content=body, headers=JSON)
    assert "embeddings" in own.json()
    assert "data" in openai.json()
