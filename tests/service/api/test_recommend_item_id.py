"""`item_id` over HTTP: one for one text, a list for a list, refused where there is no filter."""

from collections.abc import Sequence
from typing import Any

import pytest

from service.core.types import PredictedBatch, Query
from tests.support.fakes import FakePredict, fake_engine, fake_manifest, running

pytestmark = pytest.mark.anyio

FILTER = {"files": ["filter.items.npy"], "own_item": True, "n_items": 52, "n_pairs": 55}


class Remembering(FakePredict):
    """Keeps the item id of every query."""

    def __init__(self) -> None:
        super().__init__()
        self.item_ids: list[str | None] = []

    def __call__(self, queries: Sequence[Query]) -> PredictedBatch:
        self.item_ids += [query.item_id for query in queries]
        return super().__call__(queries)


def filtering(predict: FakePredict) -> Any:
    """A service whose bundle has an item filter."""
    engine = fake_engine(predict)
    engine.manifest = fake_manifest(filter=FILTER)
    return running(predict, engine, max_text_chars=20, max_queries=4)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"query": "a", "item_id": "pg1"}, ["pg1"]),
        ({"query": "a", "item_id": None}, [None]),
        ({"query": "a"}, [None]),
        ({"query": ["a"], "item_id": ["pg1"]}, ["pg1"]),
        ({"query": ["a", "b", "c"], "item_id": ["pg1", None, ""]}, ["pg1", None, ""]),
        ({"query": ["a", "b"], "item_id": None}, [None, None]),
        ({"query": ["a", "b"]}, [None, None]),
    ],
)
async def test_items_reach_their_texts(body: Any, expected: list[str | None]) -> None:
    predict = Remembering()
    async with filtering(predict) as service:
        answer = await service.recommend(body)
    assert answer.status_code == 200, answer.text
    assert predict.item_ids == expected


async def test_get_takes_the_item_of_its_text() -> None:
    predict = Remembering()
    async with filtering(predict) as service:
        answers = [
            await service.client.get(f"/v1/recommend?q=a{more}") for more in ("", "&item_id=pg%201")
        ]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert predict.item_ids == [None, "pg 1"]


REFUSED: list[tuple[Any, int, str]] = [
    ({"query": "a", "item_id": ["pg1"]}, 422, "item_id must be like query"),
    ({"query": ["a"], "item_id": "pg1"}, 422, "item_id must be like query"),
    ({"query": ["a", "b"], "item_id": ["pg1"]}, 422, "holds 1 ids for 2 texts"),
    ({"query": ["a"], "item_id": ["pg1", None]}, 422, "holds 2 ids for 1 texts"),
    ({"query": ["a"], "item_id": []}, 422, "item_id: "),
    ({"query": ["a"] * 4, "item_id": ["x"] * 5}, 422, "item_id: "),
    ({"query": "a", "item_id": 7}, 422, "item_id: "),
    ({"query": ["a", "b"], "item_id": ["x", 7]}, 422, "item_id[1]: "),
    ({"query": "a", "item_id": "x" * 1025}, 413, "item_id has 1025 characters, the limit is 1024"),
    ({"query": ["a"], "item_id": ["x" * 1025]}, 413, "item_id[0] has 1025 characters"),
]


@pytest.mark.parametrize(("body", "status", "detail"), REFUSED)
async def test_items_that_do_not_fit_are_refused(body: Any, status: int, detail: str) -> None:
    predict = Remembering()
    async with filtering(predict) as service:
        answer = await service.recommend(body)
    assert answer.status_code == status, answer.text
    assert detail in answer.json()["detail"]
    assert predict.batches == []


async def test_a_bundle_without_a_filter_refuses_items() -> None:
    async with running() as service:
        answers = [
            await service.recommend({"query": "a", "item_id": "pg1"}),
            await service.client.get("/v1/recommend?q=a&item_id=pg1"),
        ]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_value")
        assert answer.json()["detail"] == "this bundle has no item filter: remove item_id"


async def test_info_says_whether_there_is_a_filter() -> None:
    async with filtering(FakePredict()) as service:
        filtered = (await service.client.get("/v1/info")).json()
    async with running() as service:
        bare = (await service.client.get("/v1/info")).json()
    assert filtered["item_filter"] == FILTER
    assert bare["item_filter"] is None


async def test_openapi_knows_items_where_there_is_a_filter() -> None:
    async with filtering(FakePredict()) as service:
        schema = (await service.client.get("/openapi.json")).json()
    async with running() as service:
        bare = (await service.client.get("/openapi.json")).json()
    field = schema["components"]["schemas"]["RecommendBody"]["properties"]["item_id"]
    assert field["examples"] == ["pg2701", ["pg2701", None]]
    assert field["anyOf"][1]["maxItems"] == 4
    names = [p["name"] for p in schema["paths"]["/v1/recommend"]["get"]["parameters"]]
    assert "item_id" in names
    assert "item_id" not in str(bare["paths"])
    assert "item_id" not in bare["components"]["schemas"]["RecommendBody"]["properties"]
