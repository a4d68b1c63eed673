"""A label's probability is the same whatever else is asked: k, a filter, an item, label rules."""

import json

import pytest

from service.core.catalogue.label_rules import LabelRules
from service.core.engine import Engine
from service.core.types import LabelFilter, Query
from tests.support.tiny_bundle import N_LABELS, seal, write_filtered_bundle, write_tiny_bundle

TEXT = "the white whale of rome"
DEPTH = 8


@pytest.fixture(scope="module", params=["flat", "hnsw"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("levels")
    plain = write_tiny_bundle(folder / "plain", kind=request.param)
    manifest = json.loads((plain / "manifest.json").read_text()) | {"golden": []}
    knots = {"scores": [-3.0, 3.0], "probabilities": [0.0, 1.0]}
    level = {"depth": DEPTH, "share": 0.5, "probable": False}
    (plain / "calibration.json").write_text(json.dumps(knots | {"level": level}))
    seal(plain, manifest)
    return Engine.open(write_filtered_bundle(plain, folder / "filtered"), device="cpu")


def served(engine: Engine, query: Query) -> dict[str, float]:
    [answer] = engine.predict([query]).predictions
    names = [engine.labels[int(row)].label_id for row in answer.rows]
    return dict(zip(names, answer.scores.tolist(), strict=True))


@pytest.fixture(scope="module")
def whole(engine: Engine) -> dict[str, float]:
    return served(engine, Query(TEXT, N_LABELS, "exact"))


@pytest.mark.parametrize("k", [1, 2, DEPTH, DEPTH + 1, N_LABELS])
def test_it_does_not_depend_on_k(engine: Engine, whole: dict[str, float], k: int) -> None:
    found = served(engine, Query(TEXT, k, "exact"))
    assert list(found) == list(whole)[:k]
    assert found == pytest.approx({name: whole[name] for name in found})


def test_it_does_not_depend_on_a_filter_or_an_item(engine: Engine, whole: dict[str, float]) -> None:
    best, *rest = whole
    for query in (
        Query(TEXT, 3, "exact", label_filter=LabelFilter(allow=tuple(rest[20:24]))),
        Query(TEXT, 3, "exact", label_filter=LabelFilter(deny=(best, rest[0]))),
        Query(TEXT, 3, "exact", item_id=best),
        Query(TEXT, 3, "exact", item_id=best, label_filter=LabelFilter(deny=(rest[0],))),
    ):
        found = served(engine, query)
        assert len(found) == 3
        assert best not in found
        assert found == pytest.approx({name: whole[name] for name in found})


def test_it_does_not_depend_on_label_rules(engine: Engine, whole: dict[str, float]) -> None:
    best, *rest = whole
    ruled = engine.with_rules(LabelRules.model_validate({"exclude": {"ids": [best, rest[1]]}}))
    found = served(ruled, Query(TEXT, 3, "exact"))
    assert list(found) == [rest[0], *rest[2:4]]
    assert found == pytest.approx({name: whole[name] for name in found})


def test_nothing_asked_for_gets_nothing(engine: Engine) -> None:
    assert served(engine, Query(TEXT, 0, "exact")) == {}
    nobody = LabelFilter(allow=("nobody",))
    assert served(engine, Query(TEXT, 3, "exact", label_filter=nobody)) == {}
