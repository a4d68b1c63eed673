"""Labels looked up, added, changed and removed over HTTP: searched at once, and after a restart."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from service.api.app import create_app
from service.core.labels.label_id import MAX_ID_CHARS
from service.observe.telemetry import Telemetry
from service.serving.deployment import open_changed_engine
from tests.support.fakes import FakePredict, Running, fake_settings
from tests.support.live import live_service

pytestmark = pytest.mark.anyio
ADMIN = {"Authorization": "Bearer admin"}
NEW = {"id": "N1", "text": "whale opera", "metadata": {"shelf": 99}}


@asynccontextmanager
async def served(bundle: Path, state: Path | None, **changes: Any) -> AsyncIterator[Running]:
    settings = fake_settings(
        bundle=bundle, device="cpu", admin_key="admin", state_dir=state, **changes
    )
    app = create_app(open_changed_engine(bundle, settings), settings, Telemetry())
    async with app.app.router.lifespan_context(app.app):
        service = Running(app, FakePredict())
        async with service.client:
            yield service


async def change(service: Running, verb: str, path: str, body: Any = None) -> httpx.Response:
    return await service.client.request(
        verb,
        f"/v1/label{path}" if path.startswith("-") else f"/v1/labels{path}",
        json=body,
        headers=ADMIN,
    )


async def ids(service: Running, query: str, **wanted: Any) -> list[str]:
    answer = await service.recommend({"query": query, "effort": "exact", **wanted})
    assert answer.status_code == 200, answer.text
    return [label["id"] for label in answer.json()["results"][0]["labels"]]


async def test_an_added_label_is_searched_at_once_and_after_a_restart(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    async with served(tiny_bundle, tmp_path) as service:
        assert "N1" not in await ids(service, "whale opera")
        done = await change(service, "POST", "", {"labels": [NEW]})
        assert (done.status_code, done.json()) == (
            200,
            {"applied": 1, "sequence": 1, "labels": 51},
        )
        assert (await ids(service, "whale opera"))[0] == "N1"
        found = (await service.client.get("/v1/labels/N1")).json()
        assert (found["text"], found["source"]) == ("whale opera", "added")
    async with served(tiny_bundle, tmp_path) as service:
        assert (await ids(service, "whale opera"))[0] == "N1"
        updated = await change(service, "PUT", "/N1", {"text": "garden storm"})
        assert updated.status_code == 200, updated.text
        assert (await ids(service, "garden storm"))[0] == "N1"
        assert (await change(service, "DELETE", "/L000")).json()["labels"] == 50
        assert "L000" not in await ids(service, "whale ship", k=50)
        assert (await service.client.get("/v1/labels/L000")).status_code == 404


async def test_filters_and_changes_agree(tiny_bundle: Path, tmp_path: Path) -> None:
    async with served(tiny_bundle, tmp_path) as service:
        await change(service, "POST", "", {"labels": [NEW]})
        assert await ids(service, "rome", allow=["N1", "L003"], k=5) in (
            ["N1", "L003"],
            ["L003", "N1"],
        )
        assert await ids(service, "rome", where={"shelf": 99}) == ["N1"]
        shelves = await ids(service, "rome", where={"shelf": [1, 3]}, k=50)
        assert shelves
        assert all(int(name[1:]) % 7 in (1, 3) and int(name[1:]) % 2 for name in shelves)
        rest = await ids(service, "whale opera", deny=["N1"], k=51)
        assert len(rest) == 50
        assert "N1" not in rest
        assert await ids(service, "rome", where={"colour": "red"}) == []


@pytest.mark.parametrize("effort", ["fast", "balanced", "exact"])
async def test_a_filtered_answer_says_its_plan(tiny_bundle: Path, effort: str) -> None:
    async with served(tiny_bundle, None) as service:
        body = {"query": "rome", "allow": ["L001", "nobody"], "effort": effort}
        result = (await service.recommend(body)).json()["results"][0]
        assert result["plan"] == {"kind": "exact", "open": 1, "labels": 50, "unknown_ids": 1}
        assert [label["id"] for label in result["labels"]] == ["L001"]
        body = {"query": "rome", "deny": ["L001"], "k": 49, "effort": effort}
        result = (await service.recommend(body)).json()["results"][0]
        assert (result["plan"]["kind"], len(result["labels"])) == ("filtered", 49)


async def test_a_batch_of_changes_is_kept_whole_or_not_at_all(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    async with served(tiny_bundle, tmp_path) as service:
        changes = [{"op": "add", "id": f"B{i}", "text": f"star {i}"} for i in range(2000)]
        done = await change(service, "POST", "-changes", {"changes": changes})
        assert done.json()["labels"] == 2050
        twice = [{"op": "remove", "id": "B0"}, {"op": "add", "id": "B1", "text": "moon"}]
        refused = await change(service, "POST", "-changes", {"changes": twice})
        assert (refused.status_code, refused.json()["code"]) == (409, "label_exists")
        assert (await service.client.get("/v1/labels/B0")).status_code == 200


async def test_workers_see_each_other_s_changes(tiny_bundle: Path, tmp_path: Path) -> None:
    async with served(tiny_bundle, tmp_path) as one, served(tiny_bundle, tmp_path) as other:
        await change(one, "POST", "", {"labels": [NEW]})
        other.app.serving.default.engine.catalogue.poll()  # what the follower does by itself
        assert (await ids(other, "whale opera"))[0] == "N1"


async def test_without_a_place_to_keep_them_changes_are_refused(tiny_bundle: Path) -> None:
    async with served(tiny_bundle, None) as service:
        refused = await change(service, "POST", "", {"labels": [NEW]})
        assert (refused.status_code, refused.json()["code"]) == (503, "catalogue_unavailable")
        assert "ASTROLABE_STATE_DIR" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "code"),
    [
        ("POST", "", {"labels": []}, 422, "invalid_value"),
        ("POST", "", {"labels": [{"id": "x"}]}, 422, "invalid_value"),
        ("POST", "", {"labels": [{"id": "x", "text": " "}]}, 422, "invalid_value"),
        ("POST", "", {"labels": [{"id": "L001", "text": "a"}]}, 409, "label_exists"),
        ("PUT", "/nobody", {"text": "a"}, 404, "label_unknown"),
        ("DELETE", "/nobody", None, 404, "label_unknown"),
        ("POST", "?model=nobody", {"labels": [NEW]}, 404, "model_unknown"),
    ],
)
async def test_what_cannot_be_changed_is_told(
    tiny_bundle: Path, tmp_path: Path, verb: str, path: str, body: Any, status: int, code: str
) -> None:
    async with served(tiny_bundle, tmp_path) as service:
        refused = await change(service, verb, path, body)
        assert (refused.status_code, refused.json()["code"]) == (status, code), refused.text


async def test_embeddings_come_and_go(tiny_bundle: Path) -> None:
    async with served(tiny_bundle, None) as service:
        made = await service.client.post("/v1/embed", json={"input": ["the white whale", "rome"]})
        embedded = made.json()
        assert embedded["dim"] == len(embedded["embeddings"][0]) == 16
        by_text = await service.recommend({"query": ["the white whale", "rome"]})
        by_vector = await service.client.post(
            "/v1/recommend/by-embedding", json={"embedding": embedded["embeddings"]}
        )
        wanted = [result["labels"] for result in by_text.json()["results"]]
        assert [result["labels"] for result in by_vector.json()["results"]] == wanted
        wrong = await service.client.post("/v1/recommend/by-embedding", json={"embedding": [1.0]})
        assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid_value")


async def test_explanations_say_why(tiny_memory_bundle: Path) -> None:
    async with served(tiny_memory_bundle, None) as service:
        body = {"query": "the white whale", "k": 4, "explain": True, "scores": "raw"}
        answer = (await service.recommend(body)).json()
        why = answer["results"][0]["explanation"]
        scores = [label["score"] for label in answer["results"][0]["labels"]]
        assert why["raw_scores"] == scores
        assert why["margins"] == pytest.approx([a - b for a, b in pairwise(scores)])
        assert why["point"]["name"] == answer["effort"] == "balanced"
        assert [neighbour["labels"] for neighbour in why["neighbours"]]
        assert set(why["stages_ms"]) == {"queue", "tokenize", "encode", "search", "rerank"}


async def test_metrics_say_how_much_waits_for_a_fold(tiny_bundle: Path, tmp_path: Path) -> None:
    async with served(tiny_bundle, tmp_path) as service:
        await change(service, "POST", "", {"labels": [NEW, NEW | {"id": "N2"}]})
        await change(service, "DELETE", "/L000")
        await change(service, "PUT", "/L001", {"text": "garden storm"})
        scraped = (await service.client.get("/metrics")).text
        assert "astrolabe_delta_labels 3.0" in scraped
        assert "astrolabe_tombstones 2.0" in scraped


ADDRESSABLE = (
    "a/b",
    "/a",
    "a//b/",
    "a b ",
    " a",
    "%",
    "%2F",
    "%2e%2e",
    "...",
    ".hidden",
    "a?b=c#d",
    "a+b&c;d",
    "a\\b",
    "\u00e9t\u00e9",
    "e\u0301te\u0301",
    "\u202e\u00ad",
    "\U0001f40b" * 1024,
    "x" * 1024,
    "X" * 1024,
    "\u00a0n",
)
UNSPEAKABLE = (
    "",
    " ",
    "\t",
    "\u200b",
    ".",
    "..",
    "../a",
    "a/./b",
    "a/..",
    "a\nb",
    "a\r",
    "\x00",
    "a\x7f",
    "a\x85",
    "a\u2028b",
    "x" * 1025,
)


@pytest.fixture(scope="module")
def shop(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    state = tmp_path_factory.mktemp("state")
    with (
        live_service(tiny_bundle, admin_key="admin", state_dir=state) as url,
        httpx.Client(base_url=url, headers=ADMIN, timeout=30) as client,
    ):
        yield client


@pytest.mark.parametrize("label_id", ADDRESSABLE, ids=ascii)
def test_what_can_be_added_can_be_addressed_by_every_route(
    shop: httpx.Client, label_id: str
) -> None:
    path = f"/v1/labels/{quote(label_id, safe='')}"
    added = shop.post("/v1/labels", json={"labels": [{"id": label_id, "text": "whale"}]})
    assert added.status_code == 200, added.text
    assert shop.get(path).json()["id"] == label_id
    assert shop.put(path, json={"text": "whale opera"}).status_code == 200
    ask = {"query": "whale opera", "k": 1, "effort": "exact"}
    for filters, expected in (
        ({}, True),
        ({"allow": [label_id]}, True),
        ({"deny": [label_id]}, False),
    ):
        [result] = shop.post("/v1/recommend", json=ask | filters).json()["results"]
        assert ([label["id"] for label in result["labels"]] == [label_id]) is expected
    update = {"op": "update", "id": label_id, "metadata": {"shelf": 1}}
    assert shop.post("/v1/label-changes", json={"changes": [update]}).status_code == 200
    assert shop.get(path).json()["metadata"] == {"shelf": 1}
    assert shop.delete(path).status_code == 200
    assert shop.get(path).status_code == 404


@pytest.mark.parametrize("label_id", UNSPEAKABLE, ids=ascii)
def test_what_no_route_can_address_cannot_be_added(shop: httpx.Client, label_id: str) -> None:
    label = {"id": label_id, "text": "whale"}
    for path, body in (
        ("/v1/labels", {"labels": [label]}),
        ("/v1/label-changes", {"changes": [{"op": "add", **label}]}),
    ):
        refused = shop.post(path, json=body)
        length = len(label_id)
        expected = (413, "payload_too_large") if length > MAX_ID_CHARS else (422, "invalid_value")
        assert (refused.status_code, refused.json()["code"]) == expected
