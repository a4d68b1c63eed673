"""Effort under load, seen from outside: what answers, metrics and /v1/info say."""

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.core.engine import Engine
from service.core.types import PredictedBatch, Query
from service.observe.logs import request_id_of_task
from tests.support.fakes import (
    FakeClock,
    FakePredict,
    Running,
    fake_engine,
    points_of_cost,
    running,
)

pytestmark = pytest.mark.anyio

POINTS = points_of_cost(fast=75, balanced=286, exact=380, thorough=768)
LONG = "x" * 90
"""As many tokens as a batch may hold, so that each text is a batch of its own."""

BATCH_S = 0.2


class Slow(FakePredict):
    """Each batch takes `BATCH_S` on the clock; keeps what effort each text was computed at."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        self.efforts: list[str] = []

    def __call__(self, queries: Sequence[Query]) -> PredictedBatch:
        self.efforts += [query.effort for query in queries]
        answer = super().__call__(queries)
        self.clock.advance(BATCH_S)
        return answer


@asynccontextmanager
async def loaded(engine: Any = None, **settings: Any) -> AsyncIterator[tuple[Running, Slow]]:
    """A service of one lane, whose batches hold one long text each."""
    clock = FakeClock()
    predict = Slow(clock)
    if engine is None:
        points = [point.model_dump() for point in POINTS]
        engine = fake_engine(predict, operating_points=points)
    settings = {
        "adaptive_effort": True,
        "max_batch_tokens": 32,
        "request_timeout_ms": 9000,
    } | settings
    async with running(predict, engine, clock, **settings) as service:
        yield service, predict


async def burst(service: Running, predict: Slow, *bodies: dict[str, Any]) -> list[httpx.Response]:
    """Answers to requests that all wait behind each other."""
    predict.hold()
    answers = []
    for body in bodies:
        answers.append(asyncio.create_task(service.recommend({"query": LONG, "k": 1} | body)))
        waiting = 32 * (len(answers) - 1)
        while service.app.serving.default.batcher.waiting_tokens < waiting:
            await asyncio.sleep(0)
    await predict.wait_entered()
    predict.release()
    return await asyncio.gather(*answers)


def efforts(answers: Sequence[httpx.Response]) -> list[str]:
    return [answer.json()["effort"] for answer in answers]


async def test_waiting_requests_are_lowered_and_every_answer_says_so() -> None:
    async with loaded() as (service, predict):
        answers = await burst(service, predict, *[{"effort": "thorough"}] * 8)
    got = efforts(answers)
    # Waits of 0.2 s and more, from the second batch on; an interval is 0.25 s, so two batches.
    assert got == ["thorough"] * 3 + ["exact"] * 2 + ["balanced"] * 2 + ["fast"]
    assert predict.efforts == got
    for answer in answers:
        lowered = answer.json()["effort"] != "thorough"
        assert answer.json().get("effort_asked") == ("thorough" if lowered else None)
        assert answer.headers.get("cache-control") == ("no-store" if lowered else None)


async def test_the_default_effort_is_lowered_too_and_without_idle_steps() -> None:
    async with loaded() as (service, predict):
        answers = await burst(service, predict, *[{}] * 4)
    assert efforts(answers) == ["balanced"] * 3 + ["fast"]
    assert answers[3].json()["effort_asked"] == "balanced"


async def test_a_strict_request_gets_the_effort_it_asks_for() -> None:
    async with loaded() as (service, predict):
        bodies = [{"effort": "thorough"}] * 8
        strict = {"effort": "exact", "effort_strict": True}
        answers = await burst(service, predict, *bodies, strict, {"effort": "fast"})
        url = "/v1/recommend?q=a&effort=thorough&effort_strict=true"
        got = await service.client.get(url)
    assert efforts(answers)[7:] == ["fast", "exact", "fast"]
    assert all("effort_asked" not in answer.json() for answer in answers[8:])
    assert got.json()["effort"] == "thorough"


async def test_lowering_counts_shows_and_ends() -> None:
    async with loaded() as (service, predict):
        full = (await service.client.get("/v1/info")).json()["adaptive_effort"]
        await burst(service, predict, *[{"query": [LONG], "effort": "thorough"}] * 8)
        lowered = (await service.client.get("/v1/info")).json()["adaptive_effort"]
        counted = [
            await service.metric(f'astrolabe_effort_total{{point="{name}"}}')
            for name in ("fast", "balanced", "exact", "thorough")
        ]
        assert await service.metric("astrolabe_effort_steps_down") == 3
        predict.clock.advance(60.0)
        assert await service.metric("astrolabe_effort_steps_down") == 0
        (after,) = await burst(service, predict, {"effort": "thorough"})
    steps = ["fast", "balanced", "exact", "thorough"]
    assert full == {"ceiling": "thorough", "steps_down": 0, "steps": steps}
    assert lowered == {"ceiling": "fast", "steps_down": 3, "steps": steps}
    assert counted == [1, 2, 2, 3]
    assert efforts([after]) == ["thorough"]


async def test_off_nothing_is_lowered_and_strictness_is_no_error() -> None:
    async with loaded(adaptive_effort=False) as (service, predict):
        answers = await burst(service, predict, *[{"effort_strict": True}] * 4, *[{}] * 4)
        info = (await service.client.get("/v1/info")).json()
        counted = await service.metric('astrolabe_effort_total{point="balanced"}')
    assert efforts(answers) == ["balanced"] * 8
    assert all("effort_asked" not in answer.json() for answer in answers)
    assert info["adaptive_effort"] is None
    assert counted == 8


async def test_strictness_is_a_truth_value() -> None:
    async with running() as service:
        answer = await service.recommend({"query": "a", "effort_strict": "yes"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_value")
    assert "effort_strict" in answer.json()["detail"]


async def test_effort_comes_back_once_requests_no_longer_wait() -> None:
    async with loaded() as (service, predict):
        await burst(service, predict, *[{"effort": "thorough"}] * 8)
        got = []
        for _ in range(20):
            predict.clock.advance(1.0)
            got += efforts([await service.recommend({"query": "a", "effort": "thorough"})])
    assert got == sorted(got, key=[point.name for point in POINTS].index)
    assert set(got) == {point.name for point in POINTS}


async def test_each_change_is_one_log_line_that_blames_no_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    blamed: list[str] = []
    caplog.handler.addFilter(lambda _: blamed.append(request_id_of_task.get()) or True)
    caplog.set_level(logging.INFO, "service.core.batching.adaptive_effort")
    async with loaded() as (service, predict):
        await burst(service, predict, *[{}] * 4)
        for _ in range(6):
            predict.clock.advance(1.0)
            await service.recommend({"query": "a"})
    changes = [line.fields for line in caplog.records]  # type: ignore[attr-defined]
    assert changes == [
        {"was": "thorough", "ceiling": "fast", "waited_ms": 600.0},
        {"was": "fast", "ceiling": "balanced", "waited_ms": 0.0},
    ]
    assert blamed == ["", ""]


async def test_bundle_whose_points_cost_the_same_is_served_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(adaptive_effort=True) as service:
        answer = await service.recommend({"query": "a"})
    assert answer.json()["effort"] == "balanced"
    assert "adaptive effort has no effect" in caplog.text


async def test_a_real_index_answers_lowered_requests_as_if_they_had_asked_for_less(
    tiny_bundle: Path,
) -> None:
    opened = Engine.open(tiny_bundle, device="cpu")
    manifest = opened.manifest.model_copy(update={"operating_points": POINTS})
    engine = dataclasses.replace(opened, manifest=manifest)
    async with running(engine=engine, adaptive_effort=True) as service:
        fast = (await service.recommend({"query": "the white whale", "effort": "fast"})).json()
        serving = service.app.serving
        assert serving.default.effort is not None
        serving.default.effort._step = 0
        lowered = (await service.recommend({"query": "the white whale"})).json()
    assert lowered.pop("effort_asked") == "balanced"
    assert lowered == fast
