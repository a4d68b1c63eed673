"""The Python client: what it sends, what it makes of answers, and when it tries again."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import AsyncClient, Client
from service.remote.answers import Applied, Embeddings, Label, OperatingPoint, ScoredLabel
from service.remote.errors import (
    AnswerNotUnderstood,
    AstrolabeConnectionError,
    AstrolabeHTTPError,
    AstrolabeTimeout,
    DeadlinePassed,
    KeyRefused,
    NoSuchThing,
    Overloaded,
    RequestRefused,
    ServiceFailed,
)
from service.remote.retries import Retries
from tests.support.processes import service_process
from tests.support.scripted import INFO, Ask, Script, ask_async, ask_sync, problem, recommendation

CHANGES: list[tuple[str, tuple[Any, ...]]] = [
    ("add_labels", ([{"id": "N1", "text": "new", "metadata": {"shelf": 3}}],)),
    ("update_label", ("N1", "newer")),
    ("remove_label", ("N1",)),
]


@pytest.fixture(params=[ask_sync, ask_async], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    return request.param  # type: ignore[no-any-return]


def ok(n: int = 1, **headers: str) -> httpx.Response:
    return httpx.Response(200, json=recommendation(n), headers=headers)


# ---- what is sent and what comes back ----


def test_recommendation_is_typed_and_carries_stages_and_request_id(ask: Ask) -> None:
    timing = "queue;dur=0.022, total;dur=4.315"
    script = Script([ok(**{"Server-Timing": timing, "X-Request-Id": "r-1"})])
    answer = ask(script, "recommend", "whale", k=5, effort="fast", where={"shelf": 3})
    assert answer.labels == (ScoredLabel("L1", 0.5, "one"),)
    assert (answer.effort, answer.score_kind, answer.effort_asked) == ("fast", "cosine", None)
    assert (answer.request_id, answer.stages_ms) == ("r-1", {"queue": 0.022, "total": 4.315})
    [request] = script.requests
    assert (request.method, str(request.url)) == ("POST", "http://test/below/v1/recommend")
    assert request.headers["content-type"] == "application/json"
    assert script.body() == {"query": "whale", "k": 5, "effort": "fast", "where": {"shelf": 3}}


def test_only_what_was_given_is_sent(ask: Ask) -> None:
    script = Script([ok(2)])
    answer = ask(
        script, "recommend", ("a", "b"), item_id=("x", None), min_score=None, allow=["L1"],
        deny=["L2"], include=["text", "embedding"], explain=True, model="books",
    )  # fmt: skip
    assert script.body() == {
        "query": ["a", "b"],
        "item_id": ["x", None],
        "allow": ["L1"],
        "deny": ["L2"],
        "include": ["text", "embedding"],
        "explain": True,
        "model": "books",
    }
    with pytest.raises(ValueError, match="too many values"):
        _ = answer.labels


def test_optional_parts_of_a_result_are_read(ask: Ask) -> None:
    content = recommendation() | {"effort_asked": "thorough"}
    content["results"][0] |= {"embedding": [0.5, 0.25], "explanation": {"tokens": 3}}
    content["results"][0]["labels"] = [{"id": "L1", "score": 1, "metadata": {"shelf": 3}}]
    answer = ask(Script([httpx.Response(200, json=content)]), "recommend", "a")
    [result] = answer.results
    assert result.labels == (ScoredLabel("L1", 1.0, None, {"shelf": 3}),)
    assert (result.embedding, result.explanation) == ((0.5, 0.25), {"tokens": 3})
    assert answer.effort_asked == "thorough"


@pytest.mark.parametrize("embedding", [(0.5, 1), [(0.5, 1)]])
def test_embeddings_are_recommended_for(ask: Ask, embedding: Any) -> None:
    script = Script([ok()])
    assert ask(script, "recommend_by_embedding", embedding, k=1).labels[0].id == "L1"
    assert script.requests[0].url.path == "/below/v1/recommend/by-embedding"
    expected = [0.5, 1] if isinstance(embedding, tuple) else [[0.5, 1]]
    assert script.body() == {"embedding": expected, "k": 1}


def test_texts_are_embedded(ask: Ask) -> None:
    content = {"embeddings": [[1.0, 0.0]], "dim": 2, "truncated": [False], "bundle_id": "b"}
    script = Script([httpx.Response(200, json=content)])
    answer = ask(script, "embed", ["whale"], model="books")
    assert answer == Embeddings(((1.0, 0.0),), 2, (False,), "b")
    assert script.body() == {"input": ["whale"], "model": "books"}


def test_label_is_fetched_by_any_id(ask: Ask) -> None:
    content = {"id": "a/b c", "text": "t", "metadata": {}, "source": "added", "bundle_id": "b"}
    script = Script([httpx.Response(200, json=content)])
    assert ask(script, "label", "a/b c") == Label("a/b c", "t", {}, "added", "b")
    assert script.requests[0].url.raw_path == b"/below/v1/labels/a%2Fb%20c"


@pytest.mark.parametrize(("method", "arguments"), CHANGES)
def test_labels_are_changed_with_the_admin_key(ask: Ask, method: str, arguments: Any) -> None:
    script = Script([httpx.Response(200, json={"applied": 1, "sequence": 8})])
    keys = {"api_key": "reader", "admin_key": "sesame"}
    assert ask(script, method, *arguments, client=keys) == Applied(1, 8)
    [request] = script.requests
    assert request.headers["authorization"] == "Bearer sesame"
    sent = {
        "add_labels": ("POST", "/below/v1/labels"),
        "update_label": ("PUT", "/below/v1/labels/N1"),
        "remove_label": ("DELETE", "/below/v1/labels/N1"),
    }
    assert (request.method, request.url.path) == sent[method]
    bodies = {
        "add_labels": b'{"labels":[{"id":"N1","text":"new","metadata":{"shelf":3}}]}',
        "update_label": b'{"text":"newer","metadata":{}}',
        "remove_label": b"",
    }
    assert request.content == bodies[method]


def test_feedback_is_sent_with_the_caller_s_key_and_counted(ask: Ask) -> None:
    script = Script([httpx.Response(202, json={"accepted": 1})])
    events = [{"label": "L1", "event": "clicked", "request_id": "r-1", "position": 2}]
    assert ask(script, "feedback", events, client={"api_key": "reader"}) == 1
    [request] = script.requests
    assert (request.method, request.url.path) == ("POST", "/below/v1/feedback")
    assert request.headers["authorization"] == "Bearer reader"
    assert json.loads(request.content) == {"events": events}


def test_feedback_that_may_have_been_stored_is_not_sent_again(ask: Ask) -> None:
    script = Script([httpx.ReadError("broken"), httpx.Response(202, json={"accepted": 1})])
    with pytest.raises(AstrolabeConnectionError):
        ask(script, "feedback", [{"label": "L1", "event": "clicked", "text": "a"}])
    assert len(script.requests) == 1


def test_models_are_named_and_described_one_by_one(ask: Ask) -> None:
    several = httpx.Response(200, json=INFO | {"models": ["tiny", "books"]})
    assert ask(Script([several]), "models") == ("tiny", "books")
    script = Script([httpx.Response(200, json=INFO | {"name": "b&b"})])
    assert ask(script, "info", model="b&b").name == "b&b"
    assert script.requests[0].url.raw_path == b"/below/v1/info?model=b%26b"


def test_ready_is_false_where_nobody_can_answer(ask: Ask) -> None:
    assert ask(Script([httpx.Response(200, json={"status": "ready"})]), "ready") is True
    assert ask(Script([problem(503)]), "ready") is False
    assert ask(Script([httpx.ConnectError("refused")]), "ready") is False


def test_key_goes_with_every_request_and_stays_out_of_errors(ask: Ask) -> None:
    script = Script([problem(401, "unauthorized")])
    with pytest.raises(KeyRefused) as caught:
        ask(script, "recommend", "a", client={"api_key": "sesame"})
    assert script.requests[0].headers["authorization"] == "Bearer sesame"
    assert "sesame" not in str(caught.value)


# ---- many texts ----


def test_many_texts_are_split_by_the_limits_and_keep_their_order(ask: Ask) -> None:
    def numbered(*numbers: int) -> httpx.Response:
        content = recommendation(len(numbers))
        for result, number in zip(content["results"], numbers, strict=True):
            result["labels"] = [{"id": str(number), "score": 1}]
        return httpx.Response(200, json=content)

    # three texts a request at most; the fourth to sixth do not fit into 400 bytes together
    texts = ["0", "1", "2", "ä" * 90, "b" * 90, "c" * 90, "6"]
    parts = [numbered(0, 1, 2), numbered(3, 4), numbered(5, 6)]
    script = Script([httpx.Response(200, json=INFO), *parts])
    ids = ["i0", None, None, "i3", None, None, None]
    results = ask(script, "recommend_many", texts, item_ids=ids, k=1)
    assert [result.labels[0].id for result in results] == [str(i) for i in range(7)]
    bodies = [script.body(i) for i in range(1, 4)]
    assert [text for body in bodies for text in body["query"]] == texts
    assert [item for body in bodies for item in body["item_id"]] == ids
    assert all(len(request.content) <= 400 for request in script.requests)
    assert all(body["k"] == 1 for body in bodies)


def test_no_text_is_no_request_but_that_for_the_limits(ask: Ask) -> None:
    script = Script([httpx.Response(200, json=INFO)])
    assert ask(script, "recommend_many", []) == []


# ---- errors ----


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RequestRefused),
        (401, KeyRefused),
        (403, KeyRefused),
        (404, NoSuchThing),
        (413, RequestRefused),
        (422, RequestRefused),
        (500, ServiceFailed),
        (504, DeadlinePassed),
    ],
)
def test_problem_becomes_a_typed_error_at_once(ask: Ask, status: int, kind: type) -> None:
    script = Script([problem(status, "a_code")])
    with pytest.raises(AstrolabeHTTPError, match="a_code: what to change") as caught:
        ask(script, "recommend", "a")
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code, error.request_id) == (status, "a_code", "r-7")
    assert error.retry_after_s is None
    assert len(script.requests) == 1


def test_error_page_of_a_proxy_is_still_an_error_with_its_status(ask: Ask) -> None:
    page = httpx.Response(502, text="<html>Bad Gateway</html>", headers={"X-Request-Id": "p-1"})
    with pytest.raises(ServiceFailed) as caught:
        ask(Script([page]), "recommend", "a")
    error = caught.value
    assert (error.status, error.code, error.request_id) == (502, "", "p-1")


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"results": []}', b'{"results": [3]}'])
def test_answer_that_is_none_of_ours_is_said_and_not_asked_again(ask: Ask, content: bytes) -> None:
    script = Script([httpx.Response(200, content=content)])
    with pytest.raises(AnswerNotUnderstood, match="POST /v1/recommend answered"):
        ask(script, "recommend", "a")


def test_address_must_be_one() -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="must begin with http"):
            kind("localhost:8000")


# ---- trying again ----


def test_refusal_for_now_is_asked_again_after_doubling_waits(ask: Ask) -> None:
    script = Script([problem(503), problem(429), problem(503), ok()])
    assert ask(script, "recommend", "a").labels
    assert script.waits == [0.1, 0.2, 0.4]


def test_wait_that_the_service_asks_for_is_kept_up_to_a_cap(ask: Ask) -> None:
    late = {"Retry-After": "60"}
    script = Script([problem(429, **{"Retry-After": "2"}), problem(429, **late), ok()])
    assert ask(script, "recommend", "a").labels
    assert script.waits == [2.0, 5.0]


def test_waits_are_spread_so_that_clients_do_not_return_together() -> None:
    retries = Retries(first_wait_s=1.0)
    assert [retries.wait_s(1, None, spread) for spread in (0.0, 0.5, 1.0)] == [1.0, 1.125, 1.25]


def test_last_error_comes_out_when_the_tries_are_used_up(ask: Ask) -> None:
    script = Script([problem(429, "queue_full", **{"Retry-After": "1"})] * 4)
    with pytest.raises(Overloaded) as caught:
        ask(script, "recommend", "a")
    assert caught.value.retry_after_s == 1.0
    assert len(script.requests) == 4


@pytest.mark.parametrize(
    "failure", [httpx.ConnectError("refused"), httpx.RemoteProtocolError("closed"),
                httpx.ReadError("reset"), httpx.ConnectTimeout("slow")]
)  # fmt: skip
def test_broken_connection_is_tried_again(ask: Ask, failure: Exception) -> None:
    script = Script([failure, ok()])
    assert ask(script, "recommend", "a").labels
    assert script.waits == [0.1]


def test_unreachable_service_is_a_wrapped_error(ask: Ask) -> None:
    script = Script([httpx.ConnectError("refused")] * 4)
    with pytest.raises(AstrolabeConnectionError, match="no answer from http://test/below/"):
        ask(script, "recommend", "a")


def test_each_try_tells_the_service_what_is_left_of_the_deadline(ask: Ask) -> None:
    script = Script([problem(503), problem(503), ok()], seconds=0.25)
    ask(script, "recommend", "a", timeout_s=2.0)
    assert script.timeouts_ms() == [2000, 1650, 1200]


def test_no_wait_goes_past_the_deadline(ask: Ask) -> None:
    script = Script([problem(503, **{"Retry-After": "1"})])
    with pytest.raises(Overloaded):
        ask(script, "recommend", "a", timeout_s=0.9)
    assert script.waits == []


def test_time_that_ran_out_is_not_asked_for_again(ask: Ask) -> None:
    script = Script([httpx.ReadTimeout("too slow")])
    with pytest.raises(AstrolabeTimeout):
        ask(script, "recommend", "a")
    assert len(script.requests) == 1


def test_deadline_that_is_told_stays_under_the_services_limit(ask: Ask) -> None:
    script = Script([ok(), httpx.Response(200, json=INFO), ok()])
    ask(script, "recommend", "a", timeout_s=100.0)
    ask(script, "recommend_many", ["a"], timeout_s=100.0)
    assert script.timeouts_ms() == [30_000, 30_000, 4000]


@pytest.mark.parametrize(("method", "arguments"), CHANGES)
@pytest.mark.parametrize(
    ("failure", "n_sent"),
    [
        (lambda: httpx.ConnectError("refused"), 2),
        (lambda: problem(429, "queue_full"), 2),
        (lambda: httpx.ReadError("reset"), 1),
        (lambda: httpx.RemoteProtocolError("closed"), 1),
        (lambda: problem(503), 1),
    ],
    ids=["never sent", "refused undone", "reset", "closed", "perhaps done"],
)
def test_change_of_labels_is_repeated_only_where_nothing_was_done(
    ask: Ask, method: str, arguments: Any, failure: Any, n_sent: int
) -> None:
    script = Script([failure(), httpx.Response(200, json={"applied": 1, "sequence": 1})])
    if n_sent == 2:
        assert ask(script, method, *arguments) == Applied(1, 1)
    else:
        with pytest.raises((AstrolabeConnectionError, Overloaded)):
            ask(script, method, *arguments)
    assert len(script.requests) == n_sent


# ---- a real service ----


def test_client_talks_to_a_real_service(tiny_bundle: Path) -> None:
    with (
        service_process(tiny_bundle, "--log-requests", "none", "--api-key", "sesame") as service,
        Client(f"http://127.0.0.1:{service.port}", api_key="sesame") as client,
    ):
        assert client.ready()
        info = client.info()
        assert (info.name, info.n_labels, info.device, info.limits.max_queries) == (
            "tiny", 50, "cpu", 64,
        )  # fmt: skip
        assert isinstance(info.operating_points[0], OperatingPoint)
        assert client.models() == ("tiny",)
        answer = client.recommend(["the white whale", "rome"], k=2, include=["text", "embedding"])
        assert [len(result.labels) for result in answer.results] == [2, 2]
        assert "whale" in str(answer.results[0].labels[0].text)
        assert answer.results[0].embedding is not None
        assert len(answer.results[0].embedding) == info.dim
        assert answer.bundle_id == info.bundle_id
        assert set(answer.stages_ms) == {"queue", "tokenize", "encode", "search", "rerank", "total"}
        many = list(client.recommend_many(["rome"] * 100, k=1))
        assert len(many) == 100
        assert many[0].labels[0] == answer.results[1].labels[0]
        with pytest.raises(RequestRefused, match="k: Input should be less") as caught:
            client.recommend("rome", k=1000)
        assert len(caught.value.request_id) == 32
        with pytest.raises(NoSuchThing, match="model_unknown"):
            client.recommend("rome", model="nowhere")
        vectors = client.embed(["the white whale", "rome"])
        assert (len(vectors.embeddings), vectors.dim) == (2, info.dim)
        again = client.recommend_by_embedding(vectors.embeddings, k=2, explain=True)
        assert [result.labels for result in again.results] == [
            result.labels for result in client.recommend(["the white whale", "rome"], k=2).results
        ]
        explanation = again.results[0].explanation
        assert explanation is not None
        assert len(explanation["margins"]) == 1


@pytest.mark.anyio
async def test_async_client_talks_to_a_real_service(tiny_bundle: Path) -> None:
    with service_process(tiny_bundle, "--log-requests", "none") as service:
        async with AsyncClient(f"http://127.0.0.1:{service.port}") as client:
            assert await client.ready()
            answer = await client.recommend("the white whale", k=2)
            assert "whale" in str(answer.labels[0].text)
            many = [result async for result in client.recommend_many(["rome"] * 70, k=1)]
            assert len(many) == 70
        assert not service.process.poll()
    async with AsyncClient(f"http://127.0.0.1:{service.port}") as client:
        assert not await client.ready()
