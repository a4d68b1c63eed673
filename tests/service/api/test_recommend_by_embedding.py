"""A vector is answered or refused, whatever its numbers: it never breaks an answer."""

import math
from collections.abc import Iterator

import httpx
import pytest

from service.core.index.protocol import MAX_QUERY_LENGTH
from tests.support.live import live_service
from tests.support.tiny_bundle import DIM, write_tiny_bundle

PATH = "/v1/recommend/by-embedding"
REQUESTS = (
    {},
    {"explain": True, "include": ["embedding"]},
    {"scores": "raw", "min_score": 1e308},
    {"min_score": -1e308},
    {"effort": "exact", "deny": ["L001"]},
    {"where": {"shelf": [1e308, 1]}},
)
VECTORS = {
    "largest": [3e38] * DIM,
    "largest, signs alternate": [3e38, -3e38] * (DIM // 2),
    "beyond 32 bits": [1e308] * DIM,
    "one too long": [2 * MAX_QUERY_LENGTH] + [0.0] * (DIM - 1),
    "just too long": [MAX_QUERY_LENGTH] * DIM,
    "longest": [MAX_QUERY_LENGTH] + [0.0] * (DIM - 1),
    "longest, negative": [-MAX_QUERY_LENGTH / DIM**0.5] * DIM,
    "smallest": [5e-324] * DIM,
    "zero": [0.0] * DIM,
    "negative zero": [-0.0] * DIM,
    "whole numbers": [10**6] + [0] * (DIM - 1),
    "large whole numbers": [2**63 - 1] * DIM,
}


@pytest.fixture(scope="module", params=["hnsw", "flat", "flat with a memory"])
def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    kind, _, memory = request.param.partition(" with a ")
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    bundle = write_tiny_bundle(folder, kind=kind, memory=bool(memory), calibrated=False)
    with live_service(bundle) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)
@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_a_vector_is_answered_with_numbers_or_refused(
    client: httpx.Client, vector: list[float], request_: dict[str, object]
) -> None:
    too_long = math.hypot(*vector) > MAX_QUERY_LENGTH
    for embedding in (vector, [[0.1] * DIM, vector]):
        answer = client.post(PATH, json={"embedding": embedding} | request_)
        assert answer.status_code == (422 if too_long else 200), answer.text
        if too_long:
            assert "the limit is 1e+06: scale it" in answer.json()["detail"]
            continue
        for result in answer.json()["results"]:
            assert all(isinstance(label["score"], float) for label in result["labels"])
