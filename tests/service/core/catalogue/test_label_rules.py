"""Label rules: what they leave open before and after changes, and the files that are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.core.catalogue.changes import Change
from service.core.catalogue.label_rules import LabelRules, read_label_rules
from service.core.engine import Engine
from service.core.types import LabelFilter, Query
from service.errors import SettingsInvalid
from tests.support.shop import add, opened
from tests.support.tiny_bundle import N_LABELS, write_tiny_bundle

TEXTS = ("the white whale", "history of rome", "a rose garden")


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path) -> Engine:
    return Engine.open(tiny_bundle, device="cpu")


def rules(**parts: Any) -> LabelRules:
    return LabelRules.model_validate(parts)


def answers(engine: Engine, k: int = N_LABELS, **asked: Any) -> list[list[str]]:
    queries = [Query(text, k, asked.pop("effort", "exact"), **asked) for text in TEXTS]
    return [
        [engine.catalogue.label(int(row)).label_id for row in answer.rows]
        for answer in engine.predict(queries).predictions
    ]


def shelved(*shelves: int) -> set[str]:
    return {f"L{i:03d}" for i in range(1, N_LABELS, 2) if i % 7 in shelves}


@pytest.mark.parametrize("effort", ["fast", "balanced", "exact"])
def test_what_is_excluded_is_in_no_answer_and_k_labels_still_come(
    engine: Engine, effort: str
) -> None:
    best = answers(engine, 3)
    ruled = engine.with_rules(rules(exclude={"ids": best[0], "where": {"shelf": [1, 3]}}))
    out = {*best[0], *shelved(1, 3)}
    for found, free in zip(answers(ruled, 10, effort=effort), answers(engine), strict=True):
        assert len(found) == 10
        assert not out & set(found)
        if effort == "exact":
            assert found == [label_id for label_id in free if label_id not in out][:10]
    assert ruled.rules is not None
    assert ruled.rules.n_open == N_LABELS - len(out)


def test_only_what_is_named_answers_and_exclude_wins(engine: Engine) -> None:
    ruled = engine.with_rules(
        rules(only={"ids": ["L000", "L001"], "where": {"shelf": 3}}, exclude={"ids": ["L001"]})
    )
    for found in answers(ruled):
        assert set(found) == {"L000", *shelved(3)} - {"L001"}


def test_a_request_gets_what_both_its_filter_and_the_rules_let_through(engine: Engine) -> None:
    asked = LabelFilter(allow=("L001", "L003", "L005"), deny=("L005",))
    for ruled in (
        engine.with_rules(rules(exclude={"ids": ["L001"]})),
        engine.with_rules(rules(only={"ids": ["L003", "L005", "L007"]})),
    ):
        assert answers(ruled, label_filter=asked) == [["L003"]] * len(TEXTS)
        denied = LabelFilter(deny=("L003",))
        assert all("L003" not in found for found in answers(ruled, label_filter=denied))


def test_labels_that_come_and_change_fall_under_the_rules_at_once(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    with opened(tiny_bundle, tmp_path) as (engine, _):
        changed = engine.with_changes(tmp_path)
        ruled = changed.with_rules(rules(exclude={"ids": ["L000"], "where": {"shelf": 9}}))
        apply = ruled.catalogue.apply
        assert ruled.rules is not None
        assert ruled.rules.n_open == N_LABELS - 1
        apply([add("N1", "whale rome", shelf=9), add("N2", "whale rome rose", shelf=8)])
        assert all("N2" in found and "N1" not in found for found in answers(ruled, 60))
        apply([Change("update", "L000", text="whale storm")])
        apply([Change("update", "L002", metadata={"shelf": 9}), Change("remove", "L004")])
        out = {"L000", "N1", "L002", "L004"}
        assert all(not out & set(found) for found in answers(ruled, 60))
        apply([Change("update", "L002", metadata={}), Change("update", "N1", metadata={})])
        assert all({"L002", "N1"} <= set(found) for found in answers(ruled, 60))
        assert ruled.rules.n_open == ruled.catalogue.n_rows - 1
        again = engine.with_changes(tmp_path).with_rules(rules(exclude={"ids": ["L004", "N1"]}))
        assert all(not {"L004", "N1"} & set(found) for found in answers(again, 60))
        again.catalogue.close()
        changed.catalogue.close()


def test_neighbours_do_not_show_what_is_excluded(tmp_path: Path) -> None:
    engine = Engine.open(write_tiny_bundle(tmp_path / "b", memory=True), device="cpu")
    embeddings = np.stack(
        [a.embedding for a in engine.predict([Query(TEXTS[0], 1, "exact")]).predictions]
    )
    shown = engine.neighbours(embeddings, "exact")
    assert shown is not None
    label_id = shown[0][0]["labels"][0]
    ruled = engine.with_rules(rules(exclude={"ids": [label_id]})).neighbours(embeddings, "exact")
    assert ruled is not None
    assert all(label_id not in neighbour["labels"] for neighbour in ruled[0])


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"exclude": {"ids": ["L000", "L00"]}}, "exclude.ids: this model has no label 'L00'"),
        ({"only": {"ids": [f"X{i}" for i in range(8)]}}, "'X4' and 3 more"),
        ({"only": {"where": {"shelf": 77}}}, "leave no label"),
        ({"only": {"ids": ["L001"]}, "exclude": {"ids": ["L001"]}}, "leave no label"),
    ],
)
def test_rules_that_fit_no_label_are_refused(engine: Engine, parts: Any, said: str) -> None:
    with pytest.raises(SettingsInvalid, match=said):
        engine.with_rules(rules(**parts))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "expected a JSON object"),
        ('{"tiny": {"exlude": {"ids": ["a"]}}}', "tiny.exlude"),
        ('{"tiny": {"exclude": {}}}', "tiny.exclude: .*names no label"),
        ('{"tiny": {"exclude": {"ids": "L000"}}}', "tiny.exclude.ids"),
        ('{"tiny": {"only": {"where": {"shelf": []}}}}', "tiny.only.where.shelf"),
        ('{"tiny": {"only": {"where": {"shelf": {"over": 3}}}}}', "tiny.only.where.shelf"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rules.json"
    path.write_text(text)
    with pytest.raises(SettingsInvalid, match=said) as refused:
        read_label_rules(path)
    assert str(path) in refused.value.detail


def test_a_file_behind_a_link_is_read(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps({"tiny": {"exclude": {"where": {"a": True}}}}))
    (tmp_path / "rules.json").symlink_to("data.json")
    read = read_label_rules(tmp_path / "rules.json")["tiny"].exclude
    assert read is not None
    assert read.where["a"] is True
