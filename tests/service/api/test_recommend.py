import asyncio
from typing import Any

import numpy as np
import pytest

from tests.support.fakes import FakePredict, running

pytestmark = pytest.mark.anyio


async def test_answer_holds_labels_in_order_and_says_where_it_comes_from() -> None:
    async with running() as service:
        answer = await service.recommend({"query": "abc", "k": 2})
    assert answer.status_code == 200
    assert answer.json() == {
        "results": [
            {
                "labels": [
                    {"id": "L003", "text": "label 3", "score": 0.9},
                    {"id": "L004", "text": "label 4", "score": 0.1},
                ],
                "truncated": False,
            }
        ],
        "bundle_id": "b" * 64,
        "effort": "balanced",
        "score_kind": "probability",
    }


async def test_results_are_a_list_in_the_order_of_the_texts() -> None:
    async with running() as service:
        answer = await service.recommend({"query": ["a", "bb"], "k": 1})
    assert [r["labels"][0]["id"] for r in answer.json()["results"]] == ["L001", "L002"]


async def test_one_text_and_a_list_of_one_get_the_same_answer() -> None:
    async with running() as service:
        single = await service.recommend({"query": "abc"})
        listed = await service.recommend({"query": ["abc"]})
    assert single.content == listed.content


async def test_get_gives_the_answer_of_post() -> None:
    async with running() as service:
        posted = await service.recommend({"query": "abc", "k": 3, "min_score": 0.2})
        got = await service.client.get("/v1/recommend?q=abc&k=3&min_score=0.2&effort=balanced")
    assert got.status_code == 200
    assert got.content == posted.content


async def test_defaults_come_from_the_bundle() -> None:
    async with running() as service:
        answer = (await service.recommend({"query": "abc"})).json()
    assert len(answer["results"][0]["labels"]) == 10
    assert answer["effort"] == "balanced"


@pytest.mark.parametrize(("min_score", "kept"), [(0.95, 0), (0.5, 2), (0.0, 3), (None, 3)])
async def test_min_score_leaves_out_lower_scores(min_score: float | None, kept: int) -> None:
    async with running() as service:
        answer = await service.recommend({"query": "a", "k": 3, "min_score": min_score})
    assert len(answer.json()["results"][0]["labels"]) == kept


async def test_include_decides_what_comes_along() -> None:
    async with running() as service:
        everything = ["metadata", "embedding", "text"]
        full = (await service.recommend({"query": "a", "k": 1, "include": everything})).json()
        bare = (await service.recommend({"query": "a", "k": 1, "include": []})).json()
    assert full["results"][0]["labels"][0]["metadata"] == {"i": 1}
    assert full["results"][0]["labels"][0]["text"] == "label 1"
    assert full["results"][0]["embedding"] == [1.0, 1.0, 1.0, 1.0]
    assert bare["results"][0] == {"labels": [{"id": "L001", "score": 0.9}], "truncated": False}


async def test_scores_have_six_decimals() -> None:
    class Third(FakePredict):
        @staticmethod
        def answer(query: Any) -> Any:
            prediction = FakePredict.answer(query)
            prediction.scores[:] = np.float32(1 / 3)
            return prediction

    async with running(Third()) as service:
        answer = await service.recommend({"query": "a", "k": 1})
    assert b'"score":0.333333}' in answer.content


REFUSED: list[tuple[Any, int, str, str]] = [
    (b"{", 400, "malformed_request", "not JSON"),
    (b"", 400, "malformed_request", "not JSON"),
    (b'{"query": "a", "min_score": NaN}', 400, "malformed_request", "not JSON"),
    (b'{"query": "\xff"}', 400, "malformed_request", "UTF-8"),
    (b'{"query": "\\ud800"}', 400, "malformed_request", "surrogate"),
    (b"[" * 5000, 400, "malformed_request", "not JSON"),
    ([], 422, "invalid_value", "must be a JSON object"),
    ({}, 422, "invalid_value", "query is missing"),
    ({"query": None}, 422, "invalid_value", "query"),
    ({"query": ""}, 422, "invalid_value", "query holds no visible character"),
    ({"query": " \t\u200b"}, 422, "invalid_value", "query holds no visible character"),
    ({"query": []}, 422, "invalid_value", "query"),
    ({"query": ["a", " "]}, 422, "invalid_value", "query[1] holds no visible character"),
    ({"query": ["a", 3]}, 422, "invalid_value", "query[1]"),
    ({"query": "x" * 21}, 413, "payload_too_large", "query has 21 characters, the limit is 20"),
    ({"query": ["a", "x" * 21]}, 413, "payload_too_large", "query[1] has 21 characters"),
    ({"query": ["a"] * 5}, 413, "payload_too_large", "query holds 5 texts, the limit is 4"),
    ({"query": "a", "k": 0}, 422, "invalid_value", "k: Input should be greater than"),
    ({"query": "a", "k": 31}, 422, "invalid_value", "k: Input should be less than"),
    ({"query": "a", "k": "3"}, 422, "invalid_value", "k: "),
    ({"query": "a", "k": True}, 422, "invalid_value", "k: "),
    ({"query": "a", "k": 2.5}, 422, "invalid_value", "k: "),
    (b'{"query": "a", "min_score": 1e999}', 400, "malformed_request", "infinity"),
    (b'{"query": "a", "k": 99999999999999999999999}', 400, "malformed_request", "k: "),
    ({"query": "a", "effort": "magic"}, 422, "invalid_value", "'fast', 'balanced'"),
    ({"query": "a", "include": ["scores"]}, 422, "invalid_value", "include[0]"),
    ({f"x{i}": 1 for i in range(99)}, 422, "invalid_value", "99 fields"),
    ({"query": "a", "top_k": 3}, 422, "invalid_value", "top_k is not a known field"),
]


@pytest.mark.parametrize(("body", "status", "code", "detail"), REFUSED)
async def test_bad_body_is_refused_with_the_place_and_the_remedy(
    body: Any, status: int, code: str, detail: str
) -> None:
    async with running(max_text_chars=20, max_queries=4, max_k=30) as service:
        answer = await service.recommend(body)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    assert detail in problem["detail"]
    assert service.predict.batches == []


@pytest.mark.parametrize(
    ("query_string", "status", "detail"),
    [
        ("", 422, "q is missing"),
        ("q=%20", 422, "q holds no visible character"),
        ("q=a&q=b", 422, "more than once"),
        ("q=a&k=x", 422, "k: "),
        ("q=a&k=1000", 422, "k: "),
        ("q=a&min_score=nan", 422, "min_score: "),
        ("q=a&allow=x", 422, "allow is not a known field"),
        ("q=%ff", 400, "cannot be read"),
        ("q=" + "x" * 9000, 413, "9000 characters"),
        ("&".join(f"a{i}=1" for i in range(99)), 400, "cannot be read"),
    ],
)
async def test_bad_query_string_is_refused(query_string: str, status: int, detail: str) -> None:
    async with running() as service:
        answer = await service.client.get(f"/v1/recommend?{query_string}")
    assert answer.status_code == status, answer.text
    assert detail in answer.json()["detail"]


async def test_whole_number_may_be_written_as_json_likes() -> None:
    async with running() as service:
        answer = await service.recommend(b'{"query": "a", "k": 2.0}')
    assert len(answer.json()["results"][0]["labels"]) == 2


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_other_content_types_are_415(content_type: str) -> None:
    async with running() as service:
        answer = await service.client.post(
            "/v1/recommend", content=b'{"query":"a"}', headers={"content-type": content_type}
        )
    assert answer.status_code == 415
    assert "application/json" in answer.json()["detail"]


async def test_content_type_may_carry_parameters() -> None:
    async with running() as service:
        answer = await service.recommend(
            {"query": "a"}, content_type="Application/JSON; charset=utf-8"
        )
    assert answer.status_code == 200


async def test_server_timing_names_every_stage_in_milliseconds() -> None:
    async with running() as service:
        answer = await service.recommend({"query": "a"})
    stages = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert list(stages) == ["queue", "tokenize", "encode", "search", "rerank", "total"]
    assert (stages["tokenize"], stages["encode"], stages["search"]) == ("1.000", "2.000", "3.000")


async def test_full_queue_is_429_with_retry_after_not_500() -> None:
    async with running(max_batch_tokens=32, max_queue_tokens=32) as service:
        service.predict.hold()
        first = asyncio.create_task(service.recommend({"query": "busy"}))
        await service.predict.wait_entered()
        second = asyncio.create_task(service.recommend({"query": "x" * 90}))
        while service.app.serving.default.batcher.waiting_tokens == 0:
            await asyncio.sleep(0)
        refused = await service.recommend({"query": "a"})
        service.predict.release()
        await asyncio.gather(first, second)
        rejected = await service.metric('astrolabe_rejected_total{reason="queue_full"}')
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert rejected == 1


async def test_broken_predict_is_500_without_internals() -> None:
    async with running() as service:
        service.predict.error = RuntimeError("secret path")
        answer = await service.recommend({"query": "a"})
    assert (answer.status_code, answer.json()["code"]) == (500, "predict_failed")
    assert "secret" not in answer.text


@pytest.mark.parametrize("timeout_ms", ["1", "10"])  # below and above the watch's grace
async def test_behind_a_stuck_predict_is_504_at_the_deadline_and_not_ready(timeout_ms: str) -> None:
    async with running(stuck_after_s=0.0001) as service:
        service.predict.hold()
        stuck = asyncio.create_task(service.recommend({"query": "stuck"}))
        await service.predict.wait_entered()
        answer = await service.recommend({"query": "a"}, x_request_timeout_ms=timeout_ms)
        ready = await service.client.get("/readyz")
        service.predict.release()
        await stuck
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert f"{timeout_ms} ms" in answer.json()["detail"]
    assert (ready.status_code, ready.json()["code"]) == (503, "not_ready")
    assert "computing" in ready.json()["detail"]
