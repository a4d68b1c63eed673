"""Diversity: the order of a slow twin, scores that stay, and an answer that ignores its batch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.catalogue.label_rules import LabelRules
from service.core.diversity import diversify
from service.core.engine import Engine
from service.core.types import LabelFilter, Query
from tests.support.shop import add, opened
from tests.support.tiny_bundle import N_LABELS, write_filtered_bundle, write_tiny_bundle
from tests.support.tiny_rerank import write_tiny_reranked_bundle

TEXTS = ("the white whale", "history of rome", "a rose garden")


def plain_order(scores: np.ndarray, vectors: np.ndarray, diversity: float, k: int) -> list[int]:
    """Maximal marginal relevance of one query, one label after the other."""
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    relevance = (scores - scores.min()) / ((scores.max() - scores.min()) or 1)
    taken: list[int] = []
    while len(taken) < min(k, len(scores)):
        left = [i for i in range(len(scores)) if i not in taken]
        like = [max((float(units[i] @ units[j]) for j in taken), default=0.0) for i in left]
        values = [
            (1 - diversity) * relevance[i] - diversity * x for i, x in zip(left, like, strict=True)
        ]
        taken.append(left[int(np.argmax(values))])
    return taken


@pytest.mark.parametrize("diversity", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("m", "k"), [(1, 3), (5, 5), (30, 10)])
def test_the_order_is_that_of_one_label_after_the_other(diversity: float, m: int, k: int) -> None:
    rng = np.random.default_rng(m)
    scores = -np.sort(-rng.random((4, m)).astype(np.float32))
    vectors = rng.standard_normal((4, m, 8)).astype(np.float32)
    places = diversify(scores, np.zeros((4, m), np.int64), vectors, diversity, k)
    for row, score, vector in zip(places, scores, vectors, strict=True):
        assert row.tolist() == plain_order(score, vector, diversity, k)


OPENED: dict[str, Callable[[Path], Path]] = {
    "hnsw": write_tiny_bundle,
    "flat with a memory": lambda folder: write_tiny_bundle(folder, kind="flat", memory=True),
    "re-ranked": write_tiny_reranked_bundle,
}


@pytest.fixture(scope="module", params=OPENED)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    return Engine.open(OPENED[request.param](folder), device="cpu")


def test_labels_change_places_and_keep_their_scores(engine: Engine) -> None:
    for text in TEXTS:
        plain, diverse = (
            engine.predict([Query(text, N_LABELS, "exact", diversity=d)]).predictions[0]
            for d in (0.0, 0.7)
        )
        assert plain.rows[0] == diverse.rows[0]
        assert plain.rows.tolist() != diverse.rows.tolist()
        assert dict(zip(plain.rows.tolist(), plain.scores.tolist(), strict=True)) == pytest.approx(
            dict(zip(diverse.rows.tolist(), diverse.scores.tolist(), strict=True))
        )


def test_diversity_keeps_to_filters_rules_and_new_labels(tiny_bundle: Path, tmp_path: Path) -> None:
    with opened(tiny_bundle, tmp_path) as (engine, _):
        changed = engine.with_changes(tmp_path)
        changed.catalogue.apply([add("new", "white whale")])
        ruled = changed.with_rules(LabelRules.model_validate({"exclude": {"ids": ["L001"]}}))
        allow = LabelFilter(allow=("new", "L001", "L002", "L003"))
        query = Query(TEXTS[0], 9, "exact", diversity=0.5, label_filter=allow)
        rows = ruled.predict([query]).predictions[0].rows
        ids = {ruled.catalogue.label(int(row)).label_id for row in rows}
        assert ids == {"new", "L002", "L003"}
        changed.catalogue.close()


QUERIES = st.lists(
    st.builds(
        Query,
        st.sampled_from(TEXTS),
        st.sampled_from([1, 5, 20]),
        st.just("exact"),
        diversity=st.sampled_from([0.0, 0.3, 1.0]),
    ),
    min_size=1,
    max_size=5,
)
MOVED = LabelRules.model_validate(
    {
        "boost": [{"ids": ["L004"], "by": 3}, {"where": {"shelf": 2}, "by": -2}],
        "pin": {"ids": ["L030", "L007"]},
        "bury": {"ids": ["L001"]},
    }
)


@settings(max_examples=20, deadline=None)
@given(QUERIES)
@pytest.mark.parametrize("rules", [None, MOVED], ids=["no rules", "rules"])
def test_an_answer_does_not_depend_on_its_batch(
    engine: Engine, rules: LabelRules | None, batch: list[Query]
) -> None:
    engine = engine if rules is None else engine.with_rules(rules)
    for query, together in zip(batch, engine.predict(batch).predictions, strict=True):
        alone = engine.predict([query]).predictions[0]
        np.testing.assert_array_equal(alone.rows, together.rows)
        np.testing.assert_allclose(alone.scores, together.scores, atol=1e-6)


@pytest.mark.parametrize("diversity", [0.0, 0.5])
def test_an_item_leaves_itself_out_even_where_a_rule_pins_it(
    tiny_bundle: Path, tmp_path: Path, diversity: float
) -> None:
    folder = write_filtered_bundle(tiny_bundle, tmp_path / "filtered")
    engine = Engine.open(folder, device="cpu").with_rules(MOVED)
    items = ("L007", "L030")
    queries = [Query(TEXTS[0], 5, "exact", item, diversity=diversity) for item in items]
    for answer, others in zip(engine.predict(queries).predictions, reversed(items), strict=True):
        ids = [engine.catalogue.label(int(row)).label_id for row in answer.rows]
        assert (len(ids), ids[0]) == (5, others)
        assert not ({*items} - {others}) & {*ids}
