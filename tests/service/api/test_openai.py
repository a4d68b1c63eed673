"""OpenAI's embeddings API, spoken by OpenAI's own client to a real service."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from service.bundle.manifest import MANIFEST
from tests.support.fakes import running
from tests.support.live import live_service
from tests.support.tiny_bundle import DIM

TEXTS = ["the white whale", "a history of rome"]


@pytest.fixture(scope="module")
def url(tiny_bundle: Path) -> Iterator[str]:
    with live_service(tiny_bundle, max_queries=4, api_key="sesame") as address:
        yield address


@pytest.fixture(scope="module")
def name(tiny_bundle: Path) -> str:
    return str(json.loads((tiny_bundle / MANIFEST).read_text())["name"])


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="sesame", max_retries=0) as found:
        yield found


def embeddings(url: str) -> list[list[float]]:
    answer = httpx.post(
        f"{url}/v1/recommend",
        json={"query": TEXTS, "k": 1, "include": ["embedding"]},
        headers={"authorization": "Bearer sesame"},
    )
    return [result["embedding"] for result in answer.json()["results"]]


def test_client_gets_the_vectors_by_its_default_form(client: Any, url: str, name: str) -> None:
    answer = client.embeddings.create(model=name, input=TEXTS)
    vectors = [item.embedding for item in answer.data]
    assert np.array(vectors) == pytest.approx(np.array(embeddings(url)), abs=1e-6)
    assert [item.index for item in answer.data] == [0, 1]
    assert (answer.object, answer.model) == ("list", name)
    # [CLS] and three or four words each
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 4 + 5


def test_floats_and_base64_are_the_same_numbers(client: Any, name: str) -> None:
    floats = client.embeddings.create(model=name, input=TEXTS[0], encoding_format="float")
    packed = client.embeddings.create(model=name, input=TEXTS[0])
    assert len(floats.data) == 1
    assert np.float32(floats.data[0].embedding).tolist() == packed.data[0].embedding
    assert len(packed.data[0].embedding) == DIM


def test_right_dimensions_and_a_user_are_taken(client: Any, name: str) -> None:
    assert client.embeddings.create(model=name, input="a whale", dimensions=DIM, user="me").data


def test_asynchronous_client_works(url: str, name: str) -> None:
    async def ask() -> int:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sesame") as client:
            answer = await client.embeddings.create(model=name, input=TEXTS)
            return len(answer.data)

    assert asyncio.run(ask()) == 2


def test_models_are_listed_and_found(client: Any, name: str) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (name, "model", "astrolabe")
    assert model.created == 1767225600  # the tiny bundle's 2026-01-01
    assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError, match="there is no model 'nobody'"):
        client.models.retrieve("nobody")


@pytest.mark.parametrize(
    ("asked", "error", "code", "param", "says"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model_unknown", None, "no model 'nobody'"),
        ({"dimensions": 3}, openai.BadRequestError, "invalid_value", "dimensions", "vectors of 16"),
        ({"input": [1, 2]}, openai.BadRequestError, "invalid_value", "input", "send texts"),
        ({"input": [[1, 2]]}, openai.BadRequestError, "invalid_value", "input", "send texts"),
        ({"input": []}, openai.BadRequestError, "invalid_value", None, "no text"),
        ({"input": ["a", ""]}, openai.BadRequestError, "invalid_value", None, "input[1]"),
        ({"input": ["a"] * 5}, openai.APIStatusError, "payload_too_large", None, "limit is 4"),
        ({"encoding_format": "hex"}, openai.BadRequestError, "invalid_value", None, "'float'"),
        (
            {"extra_body": {"effort": "fast"}},
            openai.BadRequestError,
            "invalid_value",
            None,
            "effort is not a known field",
        ),
    ],
)
def test_client_is_told_what_is_wrong(
    client: Any, name: str, asked: Any, error: Any, code: str, param: str | None, says: str
) -> None:
    with pytest.raises(error) as refusal:
        client.embeddings.create(**({"model": name, "input": "a whale"} | asked))
    assert (refusal.value.code, refusal.value.param) == (code, param)
    assert refusal.value.type == "invalid_request_error"
    assert says in str(refusal.value)
    assert refusal.value.request_id


def test_wrong_key_is_an_authentication_error(url: str, name: str) -> None:
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as refusal,
    ):
        client.embeddings.create(model=name, input="a")
    assert refusal.value.code == "unauthorized"


@pytest.mark.anyio
async def test_overload_is_a_rate_limit_error_with_retry_after() -> None:
    async with running(max_batch_tokens=32, max_queue_tokens=32, max_queries=1) as service:
        service.predict.hold()
        busy = asyncio.create_task(service.recommend({"query": "x" * 90}))
        await service.predict.wait_entered()
        waiting = asyncio.create_task(service.recommend({"query": "x" * 90}))
        while not service.app.serving.default.batcher.waiting_tokens:
            await asyncio.sleep(0)
        answer = await service.client.post("/v1/embeddings", json={"model": "tiny", "input": "a"})
        service.predict.release()
        await asyncio.gather(busy, waiting)
    assert answer.status_code == 429
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert answer.json()["error"]["code"] == "queue_full"
    assert int(answer.headers["retry-after"]) >= 1
