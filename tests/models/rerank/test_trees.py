"""Trees that learn to rank: what is missing, what is filtered, and one seed, one result."""

from dataclasses import replace

import numpy as np

from models.config import RerankConfig
from models.rerank.trees import blanked, grow, score
from tests.support.rerank import NAMES, some_examples

SMALL = RerankConfig(kind="trees", trees=20, leaves=4, depth=10)


def test_some_queries_lose_their_text_and_some_candidates_what_an_added_label_lacks():
    features = some_examples(400, seed=0).features
    result = blanked(features, NAMES, np.random.default_rng(0))
    logit, frequency, share = np.moveaxis(np.isnan(result), 2, 0)
    assert not logit.any()
    assert 0.01 < frequency.mean() < 0.1
    textless = share.all(axis=1)
    assert 0.01 < textless.mean() < 0.1
    assert not frequency[textless].all()
    kept = ~np.isnan(result)
    assert np.array_equal(result[kept], features[kept])
    assert not np.isnan(features).any()


def test_candidates_without_a_value_are_scored():
    booster = grow(some_examples(300, seed=0), NAMES, SMALL, seed=1)
    unknown = np.full((2, 3, len(NAMES)), np.nan, np.float32)
    assert np.isfinite(score(booster, unknown)).all()


def test_filtered_candidates_teach_nothing():
    """What is filtered says the opposite of the rest, ten times as loud."""
    examples = some_examples(300, seed=0)
    wrong = np.zeros_like(examples.right)
    wrong[:, -3:] = True
    features = examples.features.copy()
    features[wrong, 1] = -9
    loud = replace(examples, features=features, right=examples.right | wrong, allowed=~wrong)
    quiet = replace(loud, right=examples.right & ~wrong)
    assert (
        grow(loud, NAMES, SMALL, seed=1).model_to_string()
        == grow(quiet, NAMES, SMALL, seed=1).model_to_string()
    )
