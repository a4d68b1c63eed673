"""Calibration: monotone, inside [0, 1], better than the raw logits, readable by the service."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from models.index.calibrate import calibrate, fit, write_calibration
from models.quality.ranking import EvaluationSet
from service.core.calibration import load_calibration
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


def test_the_service_reads_back_what_was_fitted(tmp_path):
    fitted = fit(np.arange(20, dtype=np.float32), np.arange(20) % 3 == 0)
    write_calibration(tmp_path / "calibration.json", fitted)
    scores = np.linspace(-5, 25, 50, dtype=np.float32)
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
