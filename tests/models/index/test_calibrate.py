"""Calibration: monotone, inside [0, 1], better than the raw logits, readable by the service."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from models.index.calibrate import calibrate, fit, write_calibration
from models.quality.ranking import EvaluationSet
from service.core.calibration import Level, load_calibration
from service.core.types import Hits

scored = st.lists(st.tuples(st.floats(-30, 30, width=32), st.booleans()), min_size=1, max_size=60)


@given(scored)
def test_the_map_is_monotone_and_a_probability(pairs):
    scores = np.array([score for score, _ in pairs], np.float32)
    outcomes = np.array([outcome for _, outcome in pairs])
    fitted = fit(scores, outcomes)
    served = fitted.apply(np.linspace(-40, 40, 200, dtype=np.float32))
    assert (np.diff(served) >= 0).all()
    assert served.min() >= 0
    assert served.max() <= 1
    assert (np.diff(fitted.scores) > 0).all()


@pytest.mark.parametrize("outcomes", [[0, 1, 1, 0, 1], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
def test_equal_scores_get_one_probability_whatever_their_order(outcomes):
    fitted = fit(np.zeros(5, np.float32), np.array(outcomes, np.bool_))
    assert fitted.apply(np.zeros((1, 1), np.float32)).item() == pytest.approx(0.6)


def test_error_falls_where_logits_are_overconfident():
    """True rate is sigmoid(score / 3), so the raw sigmoid is far too sure of itself."""
    rng = np.random.default_rng(1)
    n, depth, n_labels = 400, 50, 200
    rows = np.argsort(rng.random((n, n_labels)), axis=1)[:, :depth]
    scores = np.sort(rng.normal(0, 4, (n, depth)).astype(np.float32), axis=1)[:, ::-1].copy()
    hits = rng.random((n, depth)) < 1 / (1 + np.exp(-scores / 3))
    truth = csr_array(
        (np.ones(hits.sum(), np.float32), (np.nonzero(hits)[0], rows[hits])), shape=(n, n_labels)
    )
    _, info = calibrate(Hits(rows, scores), EvaluationSet(None, truth), logit_bias=0.0)
    assert info.ece_after < info.ece_before / 2
    assert info.ece_after < 0.03


def test_the_first_label_is_right_as_often_as_stated_where_queries_lie_high_or_low():
    """Scores of a query move together by a number that says nothing about its labels.

    A map of raw scores states far too little for the first label. Pooled over ten it hides that.
    """
    rng = np.random.default_rng(5)
    n, depth, n_labels = 800, 50, 60
    chance = np.exp(-np.arange(depth) / 3) * rng.uniform(0.2, 0.8, (n, 1))
    logits = np.log(chance / (1 - chance))
    scores = (logits + rng.normal(0, 3, (n, 1))).astype(np.float32)
    rows = np.tile(np.arange(depth), (n, 1))
    truth = csr_array((rng.random((n, depth)) < chance).astype(np.float32))
    truth.resize(n, n_labels)
    fitted, info = calibrate(Hits(rows, scores), EvaluationSet(None, truth), logit_bias=0.0)
    assert info.first_after < 0.08 < 0.2 < info.first_before
    stated = fitted.apply(scores[:, :10])[:, 0]
    assert stated.mean() == pytest.approx(chance[:, 0].mean(), abs=0.06)
    raw = fit(scores.ravel(), (truth.toarray()[:, :depth] > 0).ravel())
    assert raw.apply(scores)[:, 0].mean() < chance[:, 0].mean() - 0.05


def test_the_halves_of_a_cross_fit_keep_a_series_whole():
    """Every query stands there five times: a half that holds its twin would state outcomes."""
    rng = np.random.default_rng(6)
    scores = np.repeat(rng.normal(0, 3, (60, 50)), 5, axis=0).astype(np.float32)
    scores = -np.sort(-scores, axis=1)
    right = np.repeat(rng.random((60, 50)) < 0.2, 5, axis=0)
    rows, groups = np.tile(np.arange(50), (300, 1)), np.arange(300) // 5
    truth = csr_array(right.astype(np.float32))
    errors = [
        calibrate(Hits(rows, scores), EvaluationSet(None, truth, None, known), 0.0)[1].ece_after
        for known in (None, groups)
    ]
    assert errors[0] < errors[1]


def test_the_service_reads_back_what_was_fitted(tmp_path):
    level = Level(10, 0.5, probable=False)
    fitted = fit(np.arange(20, dtype=np.float32), np.arange(20) % 3 == 0, level)
    write_calibration(tmp_path / "calibration.json", fitted)
    scores = np.linspace(25, -5, 50, dtype=np.float32)[None]
    loaded = load_calibration(tmp_path / "calibration.json")
    assert loaded.apply(scores) == pytest.approx(fitted.apply(scores))


def test_filtered_answers_are_neither_fitted_nor_judged():
    """The first answer is each item itself: sure of itself, never relevant, never served."""
    rng = np.random.default_rng(2)
    n, depth = 300, 12
    rows = np.tile(np.arange(depth), (n, 1))
    scores = np.sort(rng.normal(0, 2, (n, depth)).astype(np.float32), axis=1)[:, ::-1].copy()
    hits = rng.random((n, depth)) < 1 / (1 + np.exp(-scores))
    hits[:, 0] = False
    truth = csr_array(hits.astype(np.float32))
    own = np.stack([np.arange(n), np.zeros(n, np.int64)], axis=1)
    fitted, info = calibrate(Hits(rows, scores), EvaluationSet(None, truth, own), 0.0)
    expected, _ = calibrate(Hits(rows[:, 1:], scores[:, 1:]), EvaluationSet(None, truth), 0.0)
    assert fitted.scores.tolist() == expected.scores.tolist()
    _, unfiltered = calibrate(Hits(rows, scores), EvaluationSet(None, truth), 0.0)
    assert info.ece_before < 0.05 < unfiltered.ece_before
