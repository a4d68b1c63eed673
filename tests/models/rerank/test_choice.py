"""Whether a second stage pays, judged on points that its trees did not learn from."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from models.config import RerankConfig
from models.quality.ranking import EvaluationSet
from models.rerank.choice import judge, learn
from models.rerank.examples import Examples
from tests.support.rerank import NAMES, some_examples

SMALL = RerankConfig(kind="auto", trees=20, leaves=4, depth=10)


def rankings(n: int, n_better: int) -> tuple[np.ndarray, np.ndarray, EvaluationSet[None]]:
    """Rankings of ten labels before and after; label 1 is right, and comes first for some after."""
    before = np.tile(np.arange(10), (n, 1))
    after = before.copy()
    after[:n_better, :2] = [1, 0]
    truth = csr_array(np.tile(np.eye(10, dtype=np.float32)[1], (n, 1)))
    return before, after, EvaluationSet(None, truth)


@pytest.mark.parametrize(
    ("n_better", "demanded", "used"),
    [(0, False, False), (2, False, False), (40, False, True), (0, True, True)],
    ids=["no gain", "within chance", "a gain", "demanded"],
)
def test_a_stage_is_used_if_it_gains_more_than_chance_or_is_demanded(n_better, demanded, used):
    before, after, validation = rankings(100, n_better)
    choice = judge(before, after, validation, demanded)
    assert choice.used == used
    assert choice.p_at_1 == (0, n_better)
    assert choice.p_at_5 == (pytest.approx(20), pytest.approx(20))


def test_filter_pairs_take_no_place():
    before, after, validation = rankings(4, 0)
    pairs = np.array([[row, 0] for row in range(4)])
    filtered = EvaluationSet(None, validation.truth, pairs)
    assert judge(before, after, filtered, False).p_at_1 == (100, 100)


def precision(scores: np.ndarray, examples: Examples) -> float:
    return float(examples.right[np.arange(len(scores)), scores.argmax(axis=1)].mean())


def test_trees_of_examples_order_validation_candidates_better_than_the_index():
    """One feature tells the right candidate, and the logits tell nothing."""
    validation = some_examples(100, seed=1)
    booster, scores = learn(some_examples(300, seed=2), validation, NAMES, SMALL, seed=3)
    assert precision(validation.logits, validation) < 0.3
    assert precision(scores, validation) > 0.8
    again, _ = learn(some_examples(300, seed=2), validation, NAMES, SMALL, seed=3)
    assert again.model_to_string() == booster.model_to_string()


def test_without_examples_no_validation_point_is_scored_by_trees_that_saw_its_group():
    """Answers that are pure chance: trees that had seen a point's own would order it well."""
    chance = some_examples(60, seed=1, tells=False)
    wide = RerankConfig(kind="trees", trees=100, leaves=63, depth=10, rate=0.3)
    booster, scores = learn(None, chance, NAMES, wide, seed=3)
    seen = booster.predict(chance.features.reshape(-1, len(NAMES))).reshape(60, -1)
    assert precision(seen, chance) > 2 * precision(scores, chance)
