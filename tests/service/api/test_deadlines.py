"""The deadline that a request names holds on every route; a change that has begun is finished."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from service.core.catalogue.changes import Applied, Change
from service.core.labels.labels import Label
from tests.support.fakes import SAFETY_S, FakeClock, FakePredict, Running, fake_engine, running

pytestmark = pytest.mark.anyio

ADMIN = {"Authorization": "Bearer admin"}
SOON = {"X-Request-Timeout-Ms": "30"}


class HeldCatalogue:
    """Changes that wait until they are released, each in the thread that it got."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.begun = threading.Semaphore(0)
        self.applied: list[str] = []
        self.between: Callable[[], None] = lambda: None

    def apply(self, changes: Sequence[Change], check: Callable[[], None]) -> Applied:
        self.begun.release()
        assert self.release.wait(SAFETY_S), "nobody released the changes"
        self.between()
        check()
        self.applied += [change.label_id for change in changes]
        return Applied(1, 1, 0, 0, 51)


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[tuple[Running, HeldCatalogue]]:
    held, engine = HeldCatalogue(), fake_engine(predict := FakePredict())
    engine.catalogue.apply = held.apply
    engine.find_label = lambda label_id: (Label(label_id, "text", {}), False)
    engine.bundle_id = "b" * 64
    async with running(predict, engine, admin_key="admin", **options) as service:
        try:
            yield service, held
        finally:
            held.release.set()


def add(service: Running, name: str, **headers: str) -> "asyncio.Task[httpx.Response]":
    return asyncio.create_task(
        service.client.post(
            "/v1/labels",
            json={"labels": [{"id": name, "text": "a"}]},
            headers=ADMIN | {key.replace("_", "-"): value for key, value in headers.items()},
        )
    )


async def begun(held: HeldCatalogue) -> None:
    assert await asyncio.to_thread(held.begun.acquire, True, SAFETY_S)


async def test_look_ups_do_not_wait_for_changes() -> None:
    async with served() as (service, held):
        changes = [add(service, f"N{i}") for i in range(40)]  # more than the pool has threads
        await begun(held)
        found = await service.client.get("/v1/labels/L1")
        assert found.status_code == 200
        held.release.set()
        assert {(await each).status_code for each in changes} == {200}
    assert sorted(held.applied) == sorted(f"N{i}" for i in range(40))


async def test_a_change_that_waits_past_its_deadline_is_not_made() -> None:
    async with served() as (service, held):
        first = add(service, "first")
        await begun(held)
        second = await add(service, "second", **SOON)
        assert (second.status_code, second.json()["code"]) == (504, "deadline_exceeded")
        held.release.set()
        assert (await first).status_code == 200
    assert held.applied == ["first"]


async def test_a_change_is_given_up_while_it_can_be() -> None:
    clock = FakeClock()
    async with served(clock=clock) as (service, held):
        held.between = lambda: clock.advance(60.0)
        held.release.set()
        late = await add(service, "late", **SOON)
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        patient = await add(service, "patient")  # only a deadline that a request names holds here
        assert patient.status_code == 200
    assert held.applied == ["patient"]


async def test_a_change_that_has_begun_is_answered_past_its_deadline() -> None:
    async with served(clock=(clock := FakeClock())) as (service, held):
        change = add(service, "slow", **SOON)
        await begun(held)
        loop = asyncio.get_running_loop()
        passed = asyncio.Event()
        loop.call_later(0.06, passed.set)  # the loop's own clock is past the deadline
        await passed.wait()
        assert not change.done()
        held.release.set()
        assert (await change).status_code == 200
    assert held.applied == ["slow"]
    assert clock.now == 1000.0


async def test_a_look_up_ends_at_its_deadline() -> None:
    async with served() as (service, _):
        stuck = threading.Event()
        engine = service.app.serving.default.engine
        engine.find_label = lambda _: stuck.wait(SAFETY_S)
        answer = await service.client.get("/v1/labels/L1", headers=SOON)
        stuck.set()
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert "30 ms" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"X-Request-Timeout-Ms": "1_0"}, "X-Request-Timeout-Ms"),
        ({"X-Request-Timeout-Ms": "0"}, "X-Request-Timeout-Ms"),
        ({"X-Request-Priority": "soon"}, "X-Request-Priority"),
    ],
)
async def test_headers_are_read_on_every_route(headers: dict[str, str], words: str) -> None:
    async with served() as (service, held):
        held.release.set()
        for verb, path in (
            ("GET", "/v1/labels/L1"),
            ("DELETE", "/v1/labels/L1"),
            ("GET", "/v1/models"),
            ("GET", "/admin/bundles"),
            ("GET", "/v1/recommend?q=a"),
        ):
            sent = ADMIN | headers | {"X-Request-Id": "mine"}
            answer = await service.client.request(verb, path, headers=sent)
            assert (answer.status_code, words in answer.text) == (422, True), answer.text
            assert answer.headers["x-request-id"] == "mine"
    assert held.applied == []
