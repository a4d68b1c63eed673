"""A bundle with a re-ranker: which answers it moves, and what leaves them alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from service.bundle.manifest import MANIFEST
from service.core.catalogue.changes import Change
from service.core.catalogue.label_rules import LabelRules
from service.core.engine import Engine
from service.core.types import LabelFilter, Prediction, Query
from service.errors import BundleError, BundleMismatch, ManifestInvalid
from tests.support.tiny_bundle import N_LABELS, seal
from tests.support.tiny_rerank import DEPTH, FEATURES, STUMPS, write_tiny_reranked_bundle

TEXTS = ["the white whale", "rome", "song and dance", "moon light of the king", "zzz", "sea " * 9]


@pytest.fixture(scope="module", params=["flat", "hnsw"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reranked") / "tiny"
    return write_tiny_reranked_bundle(folder, kind=request.param)


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Engine:
    return Engine.open(bundle, device="cpu")


def ask(engine: Engine, text: str = TEXTS[0], **fields: Any) -> Prediction:
    query = Query(**{"text": text, "k": 10, "effort": "exact"} | fields)
    return engine.predict([query]).predictions[0]


def same(one: Prediction, other: Prediction, n: int | None = None) -> bool:
    return (
        one.rows[:n].tolist() == other.rows[:n].tolist()
        and one.scores[:n].tolist() == other.scores[:n].tolist()
    )


def test_the_first_labels_come_in_the_order_of_the_trees(engine: Engine) -> None:
    moved = 0
    for text in TEXTS:
        found, plain = ask(engine, text, k=DEPTH), ask(engine, text, k=DEPTH, effort="fast")
        assert found.searched is not None
        if engine.index.kind == "flat":
            assert set(found.rows) == set(plain.rows)
            assert found.searched.tolist() == plain.rows.tolist()
        assert (np.diff(found.raw_scores) <= 0).all()
        assert (np.diff(found.scores) <= 0).all()
        moved += found.rows.tolist() != found.searched.tolist()
    assert moved >= len(TEXTS) - 1


def test_scores_are_what_the_trees_say_of_the_features(engine: Engine) -> None:
    found = ask(engine, "whale and sea", k=DEPTH)
    logits = engine.index.search(found.embedding[None], DEPTH, "exact")
    shares = np.exp(logits.scores[0] - logits.scores[0, 0])
    shares /= shares.sum()
    knowledge = engine.reranker.knowledge
    texts = [engine.labels[int(row)].text.split() for row in logits.rows[0]]
    assert engine.memory is not None
    near = engine.memory.recall(found.embedding[None], "exact")
    weights = np.exp((near.scores[0] - near.scores[0, 0]) / engine.memory.temperature)
    mass = np.zeros(N_LABELS)
    for weight, neighbour in zip(weights / weights.sum(), near.rows[0], strict=True):
        mass[engine.memory.labels_of(int(neighbour))] += weight
    together = np.zeros(N_LABELS)
    for row, share in zip(logits.rows[0], shares, strict=True):
        together[knowledge.partners[row]] += share * knowledge.partner_shares[row]
    values = {
        "softmax": shares,
        "memory_mass_100": mass[logits.rows[0]],
        "frequency": knowledge.frequencies[logits.rows[0]],
        "cooccurrence": together[logits.rows[0]],
        "label_share": [len({"whale", "sea"} & set(words)) / len(words) for words in texts],
        "rank": np.arange(DEPTH),
    }
    expected = np.zeros(DEPTH)
    for name, threshold, low, high, _ in STUMPS:
        expected += np.where(np.asarray(values[name]) <= threshold, low, high)
    by_row = dict(zip(found.rows.tolist(), found.raw_scores.tolist(), strict=True))
    assert [by_row[row] for row in logits.rows[0].tolist()] == pytest.approx(expected, abs=1e-6)


def test_an_effort_without_a_depth_answers_by_the_index(engine: Engine) -> None:
    found = ask(engine, effort="fast")
    assert found.searched is None
    hits = engine.index.search(found.embedding[None], 10, "fast")
    assert (found.rows.tolist(), found.raw_scores.tolist()) == (
        hits.rows[0].tolist(),
        hits.scores[0].tolist(),
    )


def test_each_effort_has_its_calibration(engine: Engine) -> None:
    for effort, knots in (
        ("fast", ([-1, 0, 1], [0, 0.1, 0.95])),
        ("exact", ([-1, 0, 3], [0.05, 0.1, 0.9])),
    ):
        found = ask(engine, effort=effort)
        assert found.scores.tolist() == pytest.approx(np.interp(found.raw_scores, *knots).tolist())


@pytest.mark.parametrize("k", [1, 5, DEPTH, DEPTH + 13, N_LABELS])
def test_an_answer_is_the_start_of_one_order_whatever_k(engine: Engine, k: int) -> None:
    whole = ask(engine, k=N_LABELS)
    assert same(ask(engine, k=k), whole, k)
    beyond = set(whole.rows[DEPTH:])
    assert not beyond & set(whole.searched[:DEPTH])
    order = [row for row in whole.searched.tolist() if row in beyond]
    assert whole.rows[DEPTH:].tolist() == order
    assert whole.raw_scores[DEPTH - 1] >= whole.raw_scores[DEPTH]
    assert len(set(whole.rows.tolist())) == N_LABELS


def test_an_answer_does_not_depend_on_its_batch(engine: Engine) -> None:
    vector = ask(engine, "a rose garden").embedding
    queries = [
        *[Query(text, 7, effort) for text in TEXTS for effort in ("fast", "balanced", "exact")],
        *[Query(text * 4, 30, "balanced") for text in TEXTS],
        Query("", 7, "balanced", vector=vector),
        Query("", 0, "balanced"),
        Query("whale", 5, "balanced", label_filter=LabelFilter(deny=("L040", "L013"))),
    ]
    together = engine.predict(queries).predictions
    for query, answer in zip(queries, together, strict=True):
        alone = engine.predict([query]).predictions[0]
        assert alone.rows.tolist() == answer.rows.tolist()
        # An encoder rounds differently beside longer texts.
        assert alone.scores.tolist() == pytest.approx(answer.scores.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    "chosen",
    [
        LabelFilter(deny=tuple(f"L{i:03d}" for i in range(0, N_LABELS, 2))),
        LabelFilter(allow=tuple(f"L{i:03d}" for i in range(12))),
        LabelFilter(where={"shelf": (1, 3)}),
        LabelFilter(allow=()),
    ],
)
def test_a_filter_leaves_labels_out_and_changes_no_score(
    engine: Engine, chosen: LabelFilter
) -> None:
    whole = ask(engine, k=N_LABELS)
    found = ask(engine, k=6, label_filter=chosen)
    open_ids = {
        label.label_id
        for label in engine.labels.scan()
        if (chosen.allow is None or label.label_id in chosen.allow)
        and label.label_id not in chosen.deny
        and (not chosen.where or label.metadata.get("shelf") in chosen.where["shelf"])
    }
    is_open = [engine.labels[int(row)].label_id in open_ids for row in whole.rows]
    assert found.rows.tolist() == whole.rows[is_open][:6].tolist()
    assert found.scores.tolist() == pytest.approx(whole.scores[is_open][:6].tolist())


def test_label_rules_leave_labels_out_and_change_no_score(engine: Engine) -> None:
    whole = ask(engine, k=N_LABELS)
    barred = [engine.labels[int(row)].label_id for row in whole.rows[:3]]
    rules = LabelRules.model_validate({"exclude": {"ids": barred}})
    found = ask(engine.with_rules(rules), k=5)
    assert found.rows.tolist() == whole.rows[3:8].tolist()
    assert found.scores.tolist() == pytest.approx(whole.scores[3:8].tolist())


def test_a_query_by_vector_is_one_without_words(engine: Engine) -> None:
    text = ask(engine, "whale sea", k=DEPTH)
    vector = ask(engine, "", k=DEPTH, vector=text.embedding)
    assert set(vector.rows) == set(text.rows)
    by_row = dict(zip(vector.rows.tolist(), vector.raw_scores.tolist(), strict=True))
    gains = [score - by_row[row] for row, score in zip(text.rows, text.raw_scores, strict=True)]
    shared = [bool({"whale", "sea"} & set(engine.labels[int(r)].text.split())) for r in text.rows]
    assert gains == pytest.approx([0.7 if words else 0 for words in shared], abs=1e-6)
    assert any(shared)


def test_added_and_removed_labels_are_re_ranked_too(bundle: Path, tmp_path: Path) -> None:
    engine = Engine.open(bundle, device="cpu").with_changes(tmp_path)
    gone = engine.labels[int(ask(engine, "whale sea").rows[0])].label_id
    add = Change("add", "new", text="whale sea whale", metadata={})
    engine.catalogue.apply([add, Change("remove", gone)])
    found = ask(engine, "whale sea", k=DEPTH)
    ids = [engine.catalogue.label(int(row)).label_id for row in found.rows]
    assert "new" in ids
    assert gone not in ids
    assert np.isfinite(found.raw_scores).all()
    whole = ask(engine, "whale sea", k=N_LABELS + 5)
    assert len(whole.rows) == N_LABELS
    assert same(found, whole, DEPTH)


def test_search_and_memory_are_those_of_the_bundle(engine: Engine) -> None:
    found = ask(engine)
    searched = engine.search(found.embedding[None], 10, "exact").rows[0]
    assert searched.tolist() == found.searched.tolist()
    neighbours = engine.neighbours(found.embedding[None], "exact")
    assert neighbours is not None
    assert len(neighbours[0]) == engine.manifest.memory.neighbours


def test_re_ranking_has_its_time_apart(engine: Engine) -> None:
    assert engine.predict([Query("whale", 5, "exact")]).timings.rerank_s > 0
    assert engine.predict([Query("whale", 5, "fast")]).timings.rerank_s == 0


def test_contributions_say_what_moved_a_label(engine: Engine) -> None:
    query = Query("whale sea", DEPTH, "exact")
    found = engine.predict([query]).predictions[0]
    moved = engine.contributions([query], [found])
    assert moved is not None
    for row, features in zip(found.rows, moved[0], strict=True):
        assert tuple(features) == FEATURES
        words = engine.labels[int(row)].text.split()
        assert features["label_share"] == pytest.approx(0.7 * bool({"whale", "sea"} & set(words)))
    assert engine.contributions([Query("whale", 5, "fast")], [found]) is None


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda m: m["rerank"].update(graph="gone.onnx"), ManifestInvalid, "gone.onnx"),
        (lambda m: m["rerank"]["files"].append("gone.npy"), ManifestInvalid, "gone.npy"),
        (lambda m: m["rerank"]["features"].append("colour"), BundleMismatch, "colour"),
        (lambda m: m["rerank"]["features"].append("gap"), BundleMismatch, "7 columns"),
        (lambda m: m["rerank"].update(depth=5), BundleMismatch, "at most 5 labels"),
        (lambda m: m.pop("rerank"), BundleMismatch, "at most 0 labels"),
        (lambda m: m["memory"].update(weight=0.2), BundleMismatch, "it must be 0"),
        (lambda m: m["rerank"]["calibration"].update(file=None), BundleMismatch, "or neither"),
        (lambda m: m["rerank"].update(graph="encoder.onnx"), BundleMismatch, "expected features"),
        (lambda m: m["rerank"].update(surprise=1), ManifestInvalid, "rerank.surprise"),
    ],
)
def test_a_part_that_does_not_fit_is_refused(
    bundle: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], Any],
    error: type[BundleError],
    words: str,
) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in bundle.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    seal(folder, manifest)
    with pytest.raises(error, match=words):
        Engine.open(folder, device="cpu")


@pytest.mark.parametrize("damage", ["itself", "back", "feature"])
def test_trees_that_would_not_end_or_read_beyond_a_row_are_refused(
    bundle: Path, tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in bundle.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    model = onnx.load(folder / "rerank.onnx")
    nodes = {each.name: each for each in model.graph.node[0].attribute}
    if damage == "feature":
        nodes["nodes_featureids"].ints[0] = 1000
    else:
        nodes["nodes_truenodeids"].ints[0] = 0 if damage == "itself" else 1
        nodes["nodes_modes"].strings[1] = b"BRANCH_LEQ"
        nodes["nodes_falsenodeids"].ints[1] = 2
    onnx.save(model, folder / "rerank.onnx")
    seal(folder, json.loads((folder / MANIFEST).read_text()))
    with pytest.raises(BundleError):
        Engine.open(folder, device="cpu")
