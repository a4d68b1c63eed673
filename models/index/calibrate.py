"""Raw scores to probabilities: isotonic regression on validation answers.

The map is fitted on the exact top labels of validation queries, deeper than anyone asks for, so
that low scores are covered. Its expected calibration error is cross-fitted: each half of the
queries is judged by a map fitted on the other half. Isotonic regression for multi-label ranking:
arXiv 2411.04276.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.sparse import csr_array
from scipy.special import expit

from models.data.filters import filtered_pairs
from models.quality.metrics import expected_calibration_error
from models.quality.ranking import EvaluationSet
from service.atomic import write_atomic
from service.bundle.manifest import CalibrationInfo
from service.core.calibration import PiecewiseLinear
from service.core.types import Hits

DEPTH = 50
_JUDGED = 10


def fit(scores: NDArray[np.floating], outcomes: NDArray[np.bool_]) -> PiecewiseLinear:
    """Isotonic map from flat `scores` to the share of relevant `outcomes`; knots are block means.

    >>> fit(np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, True, False, True])).probabilities
    array([0. , 0.5, 1. ])
    """
    order = np.argsort(scores, kind="stable")
    fitted = isotonic_regression(outcomes[order].astype(np.float64))
    starts = fitted.blocks[:-1]
    sizes = np.diff(fitted.blocks)
    knots = np.add.reduceat(scores[order].astype(np.float64), starts) / sizes
    # Equal scores can end in two blocks; interpolation needs knots that rise.
    rising = np.concatenate([[True], np.diff(knots) > 0])
    return PiecewiseLinear(knots[rising], np.clip(fitted.x[starts][rising], 0.0, 1.0))


def calibrate(
    answers: Hits, validation: EvaluationSet[Any], logit_bias: float | None
) -> tuple[PiecewiseLinear, CalibrationInfo]:
    """Fit on ranked answers (n, DEPTH); errors are over the first ten labels of each answer.

    Without a `logit_bias` the scores are probabilities already. Answers in the filter pairs are
    neither fitted nor judged: nobody who names the item is served them.
    """
    scores, rows, truth = answers.scores, answers.rows, validation.truth
    outcomes = relevant(rows, truth)
    kept = ~relevant(rows, filtered_pairs(validation.filter_pairs, *truth.shape))
    fold = np.arange(len(rows)) % 2
    crossed = np.empty_like(scores)
    for held_out in (0, 1):
        fitting = kept & (fold != held_out)[:, None]
        fitted = fit(scores[fitting], outcomes[fitting])
        crossed[fold == held_out] = fitted.apply(scores[fold == held_out])
    first = np.s_[:, :_JUDGED]
    judged = outcomes[first][kept[first]]
    said = scores[first][kept[first]].astype(np.float64)
    before = said if logit_bias is None else expit(said + logit_bias)
    info = CalibrationInfo(
        file=None,
        kind="isotonic",
        ece_before=round(expected_calibration_error(before, judged), 5),
        ece_after=round(expected_calibration_error(crossed[first][kept[first]], judged), 5),
    )
    return fit(scores[kept], outcomes[kept]), info


def relevant(rows: NDArray[np.int64], truth: csr_array) -> NDArray[np.bool_]:
    """Whether each ranked label (n, k) is among the row's true labels."""
    n_labels = truth.shape[1]
    true_rows = np.repeat(np.arange(truth.shape[0]), np.diff(truth.indptr))
    keys = true_rows * n_labels + truth.indices
    return np.isin(np.arange(len(rows))[:, None] * n_labels + rows, keys)


def write_calibration(path: Path, fitted: PiecewiseLinear) -> None:
    """Write what service.core.calibration reads, atomically."""
    knots = {
        "scores": fitted.scores.tolist(),
        "probabilities": fitted.probabilities.tolist(),
    }
    write_atomic(path, lambda temporary: temporary.write_text(json.dumps(knots)))
