"""Rules that move labels: where they stand, with which score, under filters and after changes."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.client import Client
from service.core.catalogue.label_rules import LabelRules, read_label_rules
from service.core.engine import Engine
from service.core.types import LabelFilter, Query
from service.errors import SettingsInvalid
from tests.support.live import live_service
from tests.support.shop import add, opened
from tests.support.tiny_bundle import N_LABELS, write_tiny_bundle
from tests.support.tiny_rerank import write_tiny_reranked_bundle

TEXT = "the white whale"
LAST = "L030"


@pytest.fixture(scope="module", params=["hnsw", "re-ranked"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    write = write_tiny_reranked_bundle if request.param == "re-ranked" else write_tiny_bundle
    return Engine.open(write(tmp_path_factory.mktemp("bundles") / "bundle"), device="cpu")


def answer(engine: Engine, k: int = N_LABELS, **fields: Any) -> dict[str, float]:
    found = engine.predict([Query(TEXT, k, "exact", **fields)]).predictions[0]
    ids = [engine.catalogue.label(int(row)).label_id for row in found.rows]
    return dict(zip(ids, found.scores.tolist(), strict=True))


def ruled(engine: Engine, **rules: Any) -> Engine:
    return engine.with_rules(LabelRules.model_validate(rules))


def test_pinned_labels_come_first_in_their_order_with_their_own_scores(engine: Engine) -> None:
    plain = answer(engine)
    worst, second, *_ = reversed(plain)
    pinned = ruled(engine, pin={"ids": [second, worst]})
    for k in (1, 5, N_LABELS):
        found = answer(pinned, k)
        rest = [label_id for label_id in plain if label_id not in (second, worst)]
        assert [*found] == [second, worst, *rest][:k]
        assert found == pytest.approx({label_id: plain[label_id] for label_id in found})
    assert worst not in answer(pinned, label_filter=LabelFilter(deny=(worst,)))
    assert next(iter(answer(pinned, 3, diversity=0.5))) == second
    excluded = ruled(engine, pin={"ids": [second, worst]}, exclude={"ids": [second]})
    assert next(iter(answer(excluded))) == worst


def test_buried_labels_come_last(engine: Engine) -> None:
    first, second, *rest = answer(engine)
    assert [*answer(ruled(engine, bury={"ids": [first, second]}))] == [*rest, first, second]
    assert first not in answer(ruled(engine, bury={"ids": [first]}), 5)


@pytest.mark.parametrize("by", [-3.0, 0.5, 20.0])
def test_a_boost_is_added_to_the_logit_of_the_score(engine: Engine, by: float) -> None:
    plain = answer(engine)
    label_id = [*plain][3]
    boosted = answer(ruled(engine, boost=[{"ids": [label_id], "by": by}]))
    before, after = (np.clip(each[label_id], 1e-7, 1 - 1e-7) for each in (plain, boosted))
    odds = before / (1 - before) * np.exp(by)
    assert after == pytest.approx(odds / (1 + odds), abs=1e-5)
    scores = [*boosted.values()]
    assert scores == sorted(scores, reverse=True)
    assert {i: s for i, s in boosted.items() if i != label_id} == pytest.approx(
        {i: s for i, s in plain.items() if i != label_id}
    )


def test_labels_that_come_later_are_moved_at_once(tiny_bundle: Path, tmp_path: Path) -> None:
    with opened(tiny_bundle, tmp_path) as (engine, _):
        changed = engine.with_changes(tmp_path)
        moved = ruled(changed, pin={"where": {"new": True}}, bury={"ids": ["L003"]})
        moved.catalogue.apply([add("fresh", "rose", new=True)])
        found = [*answer(moved, N_LABELS + 1)]
        assert (found[0], found[-1]) == ("fresh", "L003")
        changed.catalogue.close()


def test_the_answer_says_which_rule_moved_a_label(tiny_bundle: Path, tmp_path: Path) -> None:
    rules = {
        "pin": {"ids": [LAST]},
        "boost": [{"ids": ["L004"], "by": 20}],
        "bury": {"ids": ["L001"]},
    }
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"tiny": rules}))
    with live_service(tiny_bundle, label_rules=path) as url, httpx.Client(base_url=url) as client:
        body = {"query": TEXT, "k": 5, "explain": True, "effort": "exact"}
        result = client.post("/v1/recommend", json=body).json()["results"][0]
        labels = result["labels"]
        assert [(label["id"], label.get("rule")) for label in labels[:2]] == [
            (LAST, "pin"),
            ("L004", "boost"),
        ]
        assert all("rule" not in label for label in labels[2:])
        reported = result["explanation"]["rules"]
        assert [each and each["rule"] for each in reported[:3]] == ["pin", "boost", None]
        assert reported[1]["score_without"] < labels[1]["score"]
        floor = {**body, "min_score": labels[1]["score"]}
        kept = client.post("/v1/recommend", json=floor).json()["results"][0]["labels"]
        assert LAST not in {label["id"] for label in kept}
        assert "L004" in {label["id"] for label in kept}
        with Client(url) as caller:
            assert caller.recommend(TEXT, k=1, diversity=0.5).labels[0].rule == "pin"
        diverse = client.post("/v1/recommend", json={**body, "diversity": 0.8}).json()
        assert diverse["results"][0]["labels"][0]["id"] == LAST
        for value in (-0.1, 1.1, "much"):
            refused = client.post("/v1/recommend", json={**body, "diversity": value})
            assert refused.status_code == 422
            assert "diversity" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"boost": [{"ids": ["L001"]}]}, "by"),
        ({"boost": [{"ids": ["L001"], "by": 21}]}, "less than or equal to 20"),
        ({"pin": {}}, "names no label"),
        ({"bury": {"ids": "L001"}}, "bury"),
    ],
)
def test_a_file_that_moves_nothing_sensible_is_refused(
    tmp_path: Path, rules: dict[str, Any], said: str
) -> None:
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"tiny": rules}))
    with pytest.raises(SettingsInvalid, match=said):
        read_label_rules(path)


@pytest.mark.parametrize("part", ["pin", "bury", "boost"])
def test_an_unknown_id_is_refused(engine: Engine, part: str) -> None:
    selection: Any = {"ids": ["nobody"]}
    with pytest.raises(SettingsInvalid, match="nobody"):
        ruled(engine, **{part: [{**selection, "by": 1}] if part == "boost" else selection})
