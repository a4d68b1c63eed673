"""The watch through raw ASGI calls: what a slow or a vanishing client does to its request."""

import asyncio

import pytest

from service.gate import watch
from tests.support.fakes import SAFETY_S, running
from tests.support.garbage import leaving_none
from tests.support.live import served
from tests.support.raw_http import RawRequest

pytestmark = pytest.mark.anyio


async def test_client_that_leaves_while_waiting_is_dropped_before_compute() -> None:
    async with running() as service:
        service.predict.hold()
        busy = asyncio.create_task(service.recommend({"query": "busy"}))
        await service.predict.wait_entered()
        leaver = RawRequest(service)
        leaver.body(b'{"query":"leaver"}')
        leaver.hang_up()
        assert await leaver.status() == 499
        service.predict.release()
        await busy
        await service.recommend({"query": "after"})
        dropped = await service.metric('astrolabe_dropped_total{reason="abandoned"}')
    assert service.predict.texts() == ["busy", "after"]
    assert dropped == 1


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


@pytest.mark.parametrize("listens", [False, True])
async def test_a_slow_request_leaves_nothing_for_the_garbage_collector(
    monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    monkeypatch.setattr(watch, "GRACE_S", 0.01)
    # Between such a page and the service stands what adds the headers.
    origins = {"cors_origins": "https://shop.example"} if listens else {}
    async with served(**origins) as run:
        run.predict.hold()
        with leaving_none(watch.Watch):
            slow = run.ask()
            await run.predict.wait_entered()
            async with asyncio.timeout(SAFETY_S):
                while listens and not is_listening():
                    await asyncio.sleep(0)
            run.predict.release()
            assert (await slow).status_code == 200


def is_listening() -> bool:
    return any("Watch._listen" in repr(task) for task in asyncio.all_tasks())
