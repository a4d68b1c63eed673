"""The watch through raw ASGI calls: what a slow or a vanishing client does to its request."""

import asyncio
import gc
from typing import Any

import pytest

from service.gate import watch
from service.overload.unread import UNREAD
from tests.service.core.batching.test_overload import alive
from tests.service.edge.test_server import served
from tests.support.fakes import SAFETY_S, Running, running

pytestmark = pytest.mark.anyio


class RawRequest:
    """One POST whose body and hang-up a test sends piece by piece."""

    def __init__(
        self, service: Running, *headers: tuple[bytes, bytes], unread_s: float = 0.0
    ) -> None:
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/recommend",
            "raw_path": b"/v1/recommend",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), *headers],
            UNREAD: unread_s,
        }
        self.task = asyncio.create_task(service.app(scope, self.inbox.get, self._send))  # type: ignore[arg-type]

    def body(self, part: bytes, more: bool = False) -> None:
        self.inbox.put_nowait({"type": "http.request", "body": part, "more_body": more})

    def hang_up(self) -> None:
        self.inbox.put_nowait({"type": "http.disconnect"})

    async def status(self) -> int:
        async with asyncio.timeout(SAFETY_S):
            await self.task
        return int(self.sent[0]["status"])

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


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
    gc.collect()
    gc.disable()
    others = alive(watch.Watch)
    # Between such a page and the service stands what adds the headers.
    origins = {"cors_origins": "https://shop.example"} if listens else {}
    try:
        async with served(**origins) as run:
            run.predict.hold()
            slow = run.ask()
            await run.predict.wait_entered()
            async with asyncio.timeout(SAFETY_S):
                while listens and not is_listening():
                    await asyncio.sleep(0)
            run.predict.release()
            assert (await slow).status_code == 200
            assert alive(watch.Watch) <= others
    finally:
        gc.enable()


def is_listening() -> bool:
    return any("Watch._listen" in repr(task) for task in asyncio.all_tasks())
