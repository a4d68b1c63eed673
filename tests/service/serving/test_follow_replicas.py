"""Two replicas of one database: what one is told, the other answers."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bundle_root import ADMIN, serving_root
from tests.support.fakes import SAFETY_S, Running
from tests.support.postgres import Server, fresh_database

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(postgres: Server) -> Iterator[str]:
    with fresh_database(postgres.url) as url:
        yield url


async def labels_of(service: Running, query: str) -> list[str]:
    answer = await service.recommend({"query": query, "k": 3})
    assert answer.status_code == 200, answer.text
    return [label["id"] for label in answer.json()["results"][0]["labels"]]


async def until_answered(service: Running, query: str, label_id: str, present: bool) -> None:
    async with asyncio.timeout(SAFETY_S):
        while (label_id in await labels_of(service, query)) is not present:
            await asyncio.sleep(0.02)


async def test_a_label_told_to_one_replica_is_answered_by_the_other(root: Path, url: str) -> None:
    label = {"id": "new", "text": "whale storm"}
    async with (
        serving_root(root, catalogue_url=url) as one,
        serving_root(root, catalogue_url=url) as other,
    ):
        added = await one.client.post("/v1/labels", json={"labels": [label]}, headers=ADMIN)
        assert added.status_code == 200, added.text
        await until_answered(other, "whale storm", "new", present=True)
        again = await other.client.post("/v1/labels", json={"labels": [label]}, headers=ADMIN)
        assert (again.status_code, again.json()["code"]) == (409, "label_exists")
        removed = await other.client.delete("/v1/labels/new", headers=ADMIN)
        assert removed.status_code == 200, removed.text
        await until_answered(one, "whale storm", "new", present=False)
    async with serving_root(root, catalogue_url=url) as later:
        assert "new" not in await labels_of(later, "whale storm")
