"""A recommender in a program: it answers as the service does, from a folder or from a URL."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service import Recommender
from service.bundle.manifest import POINTER
from service.errors import BundleError, InvalidValue
from service.recommender import TEXTS_AT_ONCE
from tests.support.bundle_root import serving_root

TEXTS = ["the white whale", "history of rome", "star and moon"]

ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"k": 3},
    {"k": 3, "effort": "fast"},
    {"k": 5, "allow": ["L001", "L002", "L003"]},
    {"k": 5, "deny": ["L001"]},
    {"k": 9, "min_score": 0.2},
]


@pytest.mark.anyio
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
async def test_answers_are_those_of_the_service(
    arguments: dict[str, Any], tiny_bundle: Path
) -> None:
    async with serving_root(tiny_bundle) as service:
        answer = await service.recommend({"query": TEXTS} | arguments)
    with Recommender.open(tiny_bundle, device="cpu") as recommender:
        own = recommender.recommend(TEXTS, **arguments)
    expected = [
        [(label["id"], label["score"]) for label in result["labels"]]
        for result in answer.json()["results"]
    ]
    assert [[(label.id, label.score) for label in result.labels] for result in own.results] == (
        expected
    )


def test_a_url_is_fetched_into_the_cache(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "b").symlink_to(tiny_bundle)
    (tmp_path / "bundles" / POINTER).write_text("b\n")
    url = f"file://{tmp_path / 'bundles'}"
    with Recommender.open(url, device="cpu", cache=tmp_path / "cache") as recommender:
        assert recommender.recommend("whale").results[0].labels
        assert (tmp_path / "cache" / recommender.bundle_id).is_dir()


@pytest.mark.parametrize(
    ("place", "error"),
    [("ftp://host/b", InvalidValue), ("nowhere", BundleError), ("file:///nowhere", BundleError)],
)
def test_what_cannot_be_opened_is_an_error(place: str, error: type, tmp_path: Path) -> None:
    with pytest.raises(error):
        Recommender.open(place, cache=tmp_path)


@pytest.mark.parametrize(
    "arguments", [{"k": 0}, {"effort": "best"}, {"where": {"a": {}}}, {"allow": "L001"}], ids=str
)
def test_wrong_arguments_name_the_field(arguments: dict[str, Any], tiny_bundle: Path) -> None:
    with (
        Recommender.open(tiny_bundle, device="cpu") as recommender,
        pytest.raises(InvalidValue, match=next(iter(arguments))),
    ):
        recommender.recommend("whale", **arguments)


def test_many_texts_are_answered_in_their_order(tiny_bundle: Path) -> None:
    texts = [TEXTS[i % 3] for i in range(TEXTS_AT_ONCE + 7)]
    with Recommender.open(tiny_bundle, device="cpu") as recommender:
        results = recommender.recommend(texts, k=1).results
        alone = [recommender.recommend(text, k=1).results[0] for text in TEXTS]
    assert list(results) == [alone[i % 3] for i in range(len(texts))]


def test_the_package_imports_nothing_heavy_before_it_is_asked() -> None:
    code = "import service, sys; assert not {'numpy', 'onnxruntime', 'faiss'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
