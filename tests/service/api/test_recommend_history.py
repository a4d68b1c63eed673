"""A query of several texts: its embedding, what is refused, and that its batch does not matter."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.client import Client
from service.core.engine import Engine
from service.core.types import History, Query
from tests.support.live import live_service
from tests.support.tiny_bundle import DIM
from tests.support.tiny_rerank import write_tiny_reranked_bundle

TEXTS = ["the white whale", "history of rome", "a rose garden"]


@pytest.fixture(scope="module")
def url(tiny_bundle: Path) -> Iterator[str]:
    with live_service(tiny_bundle) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "re-ranked"])
def engine(
    request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    return Engine.open(
        write_tiny_reranked_bundle(folder) if request.param else tiny_bundle, device="cpu"
    )


def embedded(client: httpx.Client, texts: Any) -> np.ndarray:
    answer = client.post("/v1/embed", json={"input": texts})
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["embeddings"])


@pytest.mark.parametrize("weights", [None, [1, 1, 1], [3, 0, 0.5], [1e-3, 1e6, 1]])
def test_a_history_is_the_weighted_mean_of_its_texts_at_length_one(
    client: httpx.Client, weights: list[float] | None
) -> None:
    mean = np.average(embedded(client, TEXTS), axis=0, weights=weights)
    history = {"texts": TEXTS, "weights": weights}
    expected = mean / np.linalg.norm(mean)
    np.testing.assert_allclose(embedded(client, history)[0], expected, atol=1e-6)
    mixed = client.post("/v1/recommend", json={"query": [TEXTS[0], history], "k": 5}).json()
    by_vector = client.post(
        "/v1/recommend/by-embedding", json={"embedding": expected.tolist(), "k": 5}
    ).json()
    ids = [[label["id"] for label in each["labels"]] for each in mixed["results"]]
    assert ids[1] == [label["id"] for label in by_vector["results"][0]["labels"]]
    alone = client.post("/v1/recommend", json={"query": TEXTS[0], "k": 5}).json()
    assert mixed["results"][0] == alone["results"][0]


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ({"texts": []}, 422, "query.texts"),
        ({"texts": ["a"] * 51}, 422, "it holds 51 entries, the limit is 50"),
        ({"texts": TEXTS, "weights": [1]}, 422, "weights holds 1 numbers for 3 texts"),
        ({"texts": TEXTS, "weights": [1, -1, 1]}, 422, "query.weights[1]"),
        ({"texts": TEXTS, "weights": [0, 0, 0]}, 422, "weights are all 0"),
        ({"texts": ["whale", " "]}, 422, "query.texts[1] holds no visible character"),
        ({"texts": ["x" * 9000]}, 413, "query.texts[0] has 9000 characters"),
        ({"texts": "whale"}, 422, "query.texts"),
        ({"weights": [1]}, 422, "query"),
        ({"texts": ["a"], "sum": 1}, 422, "query.sum"),
        (["whale", {"texts": ["a", ""]}], 422, "query[1].texts[1] holds no visible character"),
    ],
)
def test_what_is_no_history_is_refused_by_its_place(
    client: httpx.Client, query: Any, status: int, said: str
) -> None:
    answer = client.post("/v1/recommend", json={"query": query})
    assert (answer.status_code, said in answer.json()["detail"]) == (status, True), answer.text


def test_a_weight_that_is_no_number_is_refused(client: httpx.Client) -> None:
    body = b'{"query": {"texts": ["a"], "weights": [NaN]}}'
    answer = client.post(
        "/v1/recommend", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code in (400, 422)


def test_one_text_that_was_cut_marks_the_history(client: httpx.Client) -> None:
    answer = client.post("/v1/embed", json={"input": [{"texts": ["a", "whale " * 500]}, "a"]})
    assert answer.json()["truncated"] == [True, False]


def test_a_history_explains_itself_and_the_client_sends_it(url: str) -> None:
    with Client(url) as client:
        answer = client.recommend({"texts": TEXTS, "weights": [1, 2, 3]}, k=3, explain=True)
        assert len(answer.labels) == 3
        assert len(client.recommend([{"texts": TEXTS}, "whale"], k=3).results) == 2
        assert len(client.embed({"texts": TEXTS}).truncated) == 1


queries = st.lists(
    st.one_of(
        st.sampled_from(TEXTS).map(lambda text: Query(text, 5, "exact")),
        st.lists(st.sampled_from([*TEXTS, "whale"]), min_size=1, max_size=4).map(
            lambda texts: Query("", 5, "exact", history=History(tuple(texts)))
        ),
        st.just(Query("", 5, "exact", vector=np.eye(1, DIM, dtype=np.float32)[0])),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=25, deadline=None)
@given(queries)
def test_an_answer_does_not_depend_on_its_batch(engine: Engine, batch: list[Query]) -> None:
    for query, together in zip(batch, engine.predict(batch).predictions, strict=True):
        alone = engine.predict([query]).predictions[0]
        np.testing.assert_array_equal(alone.rows, together.rows)
        np.testing.assert_allclose(alone.scores, together.scores, atol=1e-6)
        assert alone.n_tokens == together.n_tokens
