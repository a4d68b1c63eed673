"""Resting: a connection that was refused too often is left unread, and always read again."""

import asyncio

import httpx
import pytest

from service.overload import resting, shedding
from tests.support.fakes import SAFETY_S
from tests.support.live import Served, served
from tests.support.overload import SMALL, hears_refusal, overload
from tests.support.raw_http import raw, recommend

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _every_refusal_is_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resting, "BURST", 0.0)
    monkeypatch.setattr(resting, "REFUSALS_PER_S", 1e-9)
    monkeypatch.setattr(resting, "LONGEST_S", 60.0)


async def finish(run: Served, waiting: "list[asyncio.Task[httpx.Response]]") -> None:
    run.predict.release()
    async with asyncio.timeout(SAFETY_S):
        assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}


async def test_what_was_not_read_is_answered_once_there_is_room() -> None:
    async with served(**SMALL) as run, raw(run) as client:
        waiting = await overload(run)
        await client.says(recommend())
        await hears_refusal(client)
        assert await run.metric("astrolabe_resting_connections") == 1
        await client.says(recommend())
        heard = asyncio.create_task(client.hears())
        assert await run.metric("astrolabe_resting_connections") == 1
        assert not heard.done()
        await finish(run, waiting)
        async with asyncio.timeout(SAFETY_S):
            assert (await heard)[0] == 200
        assert await run.metric("astrolabe_resting_connections") == 0


async def test_a_connection_is_read_again_even_where_nothing_gets_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resting, "LONGEST_S", 0.02)
    async with served(**SMALL) as run, raw(run) as client:
        waiting = await overload(run)
        for _ in range(3):
            await client.says(recommend())
            async with asyncio.timeout(SAFETY_S):
                await hears_refusal(client)
        await finish(run, waiting)


async def test_retry_after_is_no_shorter_than_the_rest_of_those_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resting, "LONGEST_S", 3.0)
    monkeypatch.setattr(shedding, "REUSE_ERROR_S", 0.0)  # each refusal gets its own sentence
    async with served(**SMALL) as run, raw(run) as one, raw(run) as other:
        waiting = await overload(run)
        await one.says(recommend())
        await hears_refusal(one)
        await other.says(recommend())
        assert (await other.hears())[1]["retry-after"] == "3"
        await finish(run, waiting)


async def test_what_was_not_read_is_answered_when_the_service_ends() -> None:
    async with served(**SMALL, drain_timeout_s=60.0) as run, raw(run) as client:
        waiting = await overload(run)
        await client.says(recommend())
        await hears_refusal(client)
        await client.says(recommend())
        assert await run.metric("astrolabe_resting_connections") == 1
        run.server.on_signal()
        async with asyncio.timeout(SAFETY_S):
            assert (await client.hears())[0] in (429, 503)
        await finish(run, waiting)
        await run.ended


async def test_a_connection_that_rests_is_not_closed_as_idle() -> None:
    async with served(**SMALL, keep_alive_s=0) as run, raw(run) as client:
        waiting = await overload(run)
        await client.says(recommend())
        await hears_refusal(client)
        await client.says(recommend())
        for _ in range(100):  # the timer of 0 seconds is due in each turn
            await asyncio.sleep(0)
        await finish(run, waiting)
        async with asyncio.timeout(SAFETY_S):
            assert (await client.hears())[0] == 200
