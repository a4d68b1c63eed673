import re
from pathlib import Path

import pytest

from service.core.engine import Engine
from tests.support.fakes import FakePredict, fake_engine, fake_manifest, running
from tests.support.tiny_rerank import DEPTH, FEATURES, write_tiny_reranked_bundle

pytestmark = pytest.mark.anyio


async def test_ready_when_the_lanes_run() -> None:
    async with running() as service:
        answer = await service.client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


async def test_dead_batcher_turns_readyz_red_but_not_livez() -> None:
    async with running() as service:
        await service.app.serving.default.batcher.drain(0.0)
        ready = await service.client.get("/readyz")
        live = await service.client.get("/livez")
        refused = await service.recommend({"query": "a"})
    assert (ready.status_code, ready.json()["code"]) == (503, "not_ready")
    assert "lanes have died" in ready.json()["detail"]
    assert live.status_code == 200
    assert refused.status_code == 503


async def test_info_says_what_is_served_and_within_which_limits() -> None:
    async with running(max_k=77, lanes=3) as service:
        info = (await service.client.get("/v1/info")).json()
    assert info["bundle_id"] == "b" * 64
    assert info["device"] == {"requested": "auto", "active": "cpu"}
    assert info["lanes"] == 3
    assert info["limits"]["max_k"] == 77
    assert info["limits"]["bulk_queue_share"] == 0.5
    assert info["operating_points"][0]["name"] == "fast"
    assert info["quality"]["metrics"] == {"p@1": 50.0}
    assert info["calibration"]["ece_after"] == 0.05
    assert info["encoder"] == {
        "variant": "fp32",
        "default": "fp32",
        "available": ["fp32"],
        "measured": {},
    }
    assert info["memory"] is None


async def test_info_says_how_a_memory_is_blended_in() -> None:
    memory = {
        "kind": "hnsw",
        "files": ["memory.faiss", "offsets.npy", "labels.npy", "values.npy"],
        "n_rows": 40,
        "params": {"m": 32},
        "neighbours": 10,
        "depth": 30,
        "weight": 0.2,
        "temperature": 0.05,
        "logit_bias": -9.0,
    }
    predict = FakePredict()
    engine = fake_engine(predict)
    engine.manifest = fake_manifest(memory=memory)
    async with running(predict, engine) as service:
        info = (await service.client.get("/v1/info")).json()
    assert info["memory"] == memory


async def test_info_and_explanations_know_the_re_ranker(tmp_path: Path) -> None:
    engine = Engine.open(write_tiny_reranked_bundle(tmp_path / "tiny"), device="cpu")
    async with running(engine=engine) as service:
        info = (await service.client.get("/v1/info")).json()
        assert (info["rerank"]["depth"], info["rerank"]["features"]) == (DEPTH, list(FEATURES))
        assert info["operating_points"][-1]["params"] == {"rerank_depth": DEPTH}
        asked = {"query": "the white whale", "k": DEPTH + 2, "explain": True, "scores": "raw"}
        answer = await service.client.post("/v1/recommend", json=asked)
        (result,) = answer.json()["results"]
        why = result["explanation"]
        assert answer.json()["score_kind"] == "logit"
        assert [label["score"] for label in result["labels"]] == why["raw_scores"]
        moved = [features for features in why["contributions"] if features]
        assert len(moved) == DEPTH
        assert why["contributions"][DEPTH:] == [None, None]
        assert {tuple(features) for features in moved} == {FEATURES}
        assert why["stages_ms"]["rerank"] > 0
        quick = await service.client.post("/v1/recommend", json=asked | {"effort": "fast"})
        assert quick.json()["results"][0]["explanation"]["contributions"] is None


async def test_metrics_are_prometheus_text() -> None:
    async with running() as service:
        await service.recommend({"query": "a"})
        answer = await service.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'astrolabe_device_info{active="cpu",requested="auto"} 1.0' in answer.text
    assert re.search(r'astrolabe_bundle_info\{bundle_id="b{64}",name="tiny"', answer.text)


async def test_documentation_page_loads_nothing_from_outside() -> None:
    async with running() as service:
        page = await service.client.get("/docs")
        loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(loaded) == 3
        for path in loaded:
            assert (await service.client.get("/" + path)).status_code == 200, path
    assert "://" not in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'self'")


async def test_openapi_states_the_limits_in_force() -> None:
    async with running(max_k=77, max_queries=3) as service:
        schema = (await service.client.get("/openapi.json")).json()
    body = schema["components"]["schemas"]["RecommendBody"]["properties"]
    assert body["k"]["anyOf"][0]["maximum"] == 77
    [texts] = [kind for kind in body["query"]["anyOf"] if kind.get("type") == "array"]
    assert texts["maxItems"] == 3
    assert body["effort"]["anyOf"][0]["enum"] == ["fast", "balanced", "thorough", "exact"]


async def test_openapi_documents_every_error_of_every_route_in_its_form() -> None:
    async with running() as service:
        schema = (await service.client.get("/openapi.json")).json()
    statuses = {"400", "401", "413", "415", "422", "429", "500", "503", "504"}
    assert statuses < set(schema["paths"]["/v1/recommend"]["post"]["responses"])
    for path, operations in schema["paths"].items():
        other = path.startswith(("/v2", "/v1/embeddings", "/v1/models/"))
        form = "application/json" if other else "application/problem+json"
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if status >= "400":
                    assert list(answer["content"]) == [form]
