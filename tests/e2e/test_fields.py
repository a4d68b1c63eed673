"""A title and a content as two views, from a configuration to an answer over HTTP."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from models import stages
from models.data.dataset import Points
from models.data.formats import write_dataset
from service.bundle.verify import read_manifest
from service.client import Client
from service.core.encoding.text import join_fields
from tests.support.live import live_service
from tests.support.tiny_job import tiny_dataset, write_tiny_job

pytestmark = pytest.mark.slow

SETTINGS = ("data.fields=title|content", "encoder.field_tokens=[8, 40]")


def in_two(points: Points) -> Points:
    """The first words of each title as its title; the rest as its content, under much noise."""
    words = [title.split() for title in points.titles]
    return replace(
        points,
        titles=[" ".join(some[:2]) for some in words],
        contents=[" ".join(["noise and more noise", *some[2:]]) for some in words],
    )


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fields")
    whole = tiny_dataset()
    assert whole.test is not None
    data = replace(whole, train=in_two(whole.train), test=in_two(whole.test))
    write_dataset(folder / "data", data)
    return stages.run_all(write_tiny_job(folder, *SETTINGS), folder / "var")


@pytest.fixture(scope="module")
def url(sealed: Path) -> Iterator[str]:
    with live_service(sealed) as url:
        yield url


def test_two_views_know_more_than_the_title(sealed: Path, tmp_path: Path) -> None:
    manifest = read_manifest(sealed)
    assert [(f.name, f.max_tokens) for f in manifest.tokenizer.fields] == [
        ("title", 8),
        ("content", 40),
    ]
    assert manifest.encoder.dim == 2 * 24
    folder = sealed.parents[3]
    titles_alone = stages.run_all(write_tiny_job(folder, "name=titles"), folder / "var")
    figures = [read_manifest(path).quality.metrics["p1"] for path in (sealed, titles_alone)]
    assert figures[0] > figures[1] + 10


def test_fields_by_name_are_the_one_text_in_which_a_separator_ends_them(url: str) -> None:
    labels = open_labels(url)
    by_name = [{"title": labels[0], "content": labels[1]}, {"content": labels[1]}, labels[0]]
    as_texts = [join_fields(labels[:2]), join_fields(["", labels[1]]), labels[0]]
    with httpx.Client(base_url=url, timeout=30) as client:
        answers = [
            client.post("/v1/recommend", json={"query": query, "include": ["embedding"]}).json()
            for query in (by_name, as_texts)
        ]
        assert answers[0] == answers[1]
        vectors = [result["embedding"] for result in answers[0]["results"]]
        embedded = client.post("/v1/embed", json={"input": by_name}).json()["embeddings"]
        one = client.post("/v1/recommend", json={"query": by_name[0]}).json()["results"]
        info = client.get("/v1/info").json()
    assert embedded == vectors
    assert [label["id"] for label in one[0]["labels"]] == [
        label["id"] for label in answers[0]["results"][0]["labels"]
    ]
    assert max(map(abs, vectors[1][:24])) == max(map(abs, vectors[2][24:])) == 0.0
    assert info["fields"] == [
        {"name": "title", "max_tokens": 8},
        {"name": "content", "max_tokens": 40},
    ]


def test_the_python_client_takes_fields_too(url: str) -> None:
    title, content = open_labels(url)
    fields = {"title": title, "content": content}
    with Client(url) as client:
        [one] = client.recommend(fields).results
        [first, _] = client.recommend_many([fields, title])
        assert one.labels == first.labels == client.recommend(join_fields(fields.values())).labels
        assert len(client.embed(fields).embeddings) == 1


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ({"author": "a"}, 422, "query: a text has no field 'author': this model reads title, con"),
        ([{"title": "a"}, {"title": 3}], 422, "query: the field title of a text must be a string"),
        ({}, 422, "query holds no visible character"),
        ([{"title": "a"}, {"content": " "}], 422, "query[1] holds no visible character"),
        ({"title": "x" * 100_000}, 413, "query has 100000 characters"),
        (3, 422, "query"),
    ],
)
def test_wrong_fields_are_refused_by_name(
    url: str, query: object, status: int, sentence: str
) -> None:
    answer = httpx.post(f"{url}/v1/recommend", json={"query": query})
    assert answer.status_code == status
    assert sentence in answer.json()["detail"]


def test_the_schema_says_how_fields_are_given(url: str) -> None:
    schemas = httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]
    kinds = schemas["RecommendBody"]["properties"]["query"]["anyOf"]
    assert [kind["type"] for kind in kinds] == ["string", "object", "object", "array"]
    names = [set(kind["properties"]) for kind in kinds if kind["type"] == "object"]
    assert {"title", "content"} in names


def open_labels(url: str) -> list[str]:
    """The texts of the first two labels that the bundle answers with: words that it knows."""
    answer = httpx.get(f"{url}/v1/recommend", params={"q": "anything", "k": 2}).json()
    return [label["text"] for label in answer["results"][0]["labels"]]
