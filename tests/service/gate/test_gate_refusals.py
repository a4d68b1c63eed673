"""Refusals and priorities over HTTP: what a client that is turned away sees, and what it costs."""

import asyncio
import logging

import pytest

from service.overload.overload_log import OverloadLog
from tests.support.fakes import JSON, SAFETY_S, FakeClock, Running, running
from tests.support.raw_http import RawRequest

pytestmark = pytest.mark.anyio

LONG = "x" * 90


async def fill(service: Running, count: int, **headers: str) -> "list[asyncio.Task[object]]":
    """Occupy the lane and let this many long texts wait behind it."""
    service.predict.hold()
    tasks: list[asyncio.Task[object]] = [
        asyncio.create_task(service.recommend({"query": LONG}))  # type: ignore[list-item]
    ]
    await service.predict.wait_entered()
    batcher = service.app.serving.default.batcher
    for _ in range(count):
        before = batcher.waiting_tokens
        tasks.append(asyncio.create_task(service.recommend({"query": LONG}, **headers)))  # type: ignore[arg-type]
        async with asyncio.timeout(SAFETY_S):
            while batcher.waiting_tokens == before:
                await asyncio.sleep(0)
    return tasks


async def test_unreachable_deadline_is_429_with_retry_after_and_counted() -> None:
    clock = FakeClock()
    async with running(clock=clock, request_timeout_ms=30_000) as service:
        slow = await fill(service, 0)
        clock.advance(5.0)
        service.predict.release()
        await asyncio.gather(*slow)
        waiting = await fill(service, 1)
        refused = await service.recommend({"query": "a"}, x_request_timeout_ms="200")
        service.predict.release()
        await asyncio.gather(*waiting)
        counted = await service.metric('astrolabe_rejected_total{reason="deadline_unreachable"}')
    problem = refused.json()
    assert (refused.status_code, problem["code"]) == (429, "deadline_unreachable")
    assert "and has 200 ms" in problem["detail"]
    assert int(refused.headers["retry-after"]) >= 5
    assert counted == 1


async def test_full_queue_is_refused_before_the_body_is_read() -> None:
    async with running(max_batch_tokens=32, max_queue_tokens=64, max_queries=2) as service:
        waiting = await fill(service, 2)
        request = RawRequest(service)  # never sends a body
        assert await request.status() == 429
        service.predict.release()
        await asyncio.gather(*waiting)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_bulk_is_taken_from_the_header(method: str) -> None:
    async with running() as service:
        waiting = await fill(service, 0)
        bulk = {"x-request-priority": "bulk"}
        client = service.client
        first = asyncio.create_task(
            client.get("/v1/recommend?q=bulk", headers=bulk)
            if method == "GET"
            else client.post("/v1/recommend", content=b'{"query":"bulk"}', headers=JSON | bulk)
        )
        batcher = service.app.serving.default.batcher
        async with asyncio.timeout(SAFETY_S):
            while not batcher.waiting_tokens:
                await asyncio.sleep(0)
        second = asyncio.create_task(
            service.recommend({"query": "now"}, x_request_priority="interactive")
        )
        async with asyncio.timeout(SAFETY_S):
            while not batcher.oldest_wait_s():
                await asyncio.sleep(0)
        service.predict.release()
        await asyncio.gather(*waiting, first, second)
    assert service.predict.texts() == [LONG, "now", "bulk"]


async def test_unknown_priority_is_refused() -> None:
    async with running() as service:
        answer = await service.recommend({"query": "a"}, x_request_priority="urgent")
    assert answer.status_code == 422
    assert "interactive, bulk" in answer.json()["detail"]


async def test_a_flood_of_refusals_is_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "service.gate.gate")
    async with running(max_batch_tokens=32, max_queue_tokens=32, max_queries=1) as service:
        waiting = await fill(service, 1)
        for _ in range(20):
            await service.recommend({"query": "a"})
        service.predict.release()
        await asyncio.gather(*waiting)
        counted = await service.metric('astrolabe_rejected_total{reason="queue_full"}')
    assert len([record for record in caplog.records if record.message == "request"]) == 1
    assert counted == 20


def test_overload_log_says_how_many_it_left_out() -> None:
    log = OverloadLog()
    assert [log.due(at) for at in (0.0, 0.1, 0.9, 1.0, 2.5)] == [0, -1, -1, 2, 0]
