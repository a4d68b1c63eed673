"""Calibration: isotonic regression from raw scores to probabilities, on validation answers.

The map is fitted on the exact top 50 labels of each validation query, so it covers low scores too.
Its expected calibration error is cross-fitted: the map of one half of the queries is evaluated on
the other half. Isotonic regression for multi-label ranking is from arXiv 2411.04276.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import expit

from models.data.filters import filtered_pairs
from models.data.prepare import CALIBRATION_DEPTH
from models.quality.metrics import expected_calibration_error, relevant
from models.quality.ranking import EvaluationSet
from service.atomic import write_text
from service.bundle.manifest import CalibrationInfo
from service.core.calibration import PiecewiseLinear
from service.core.types import Hits

DEPTH = CALIBRATION_DEPTH
_EVALUATED = 10
"""Labels of an answer that the error is measured on: the default k (`release.default_k`)."""


def fit(scores: NDArray[np.floating], outcomes: NDArray[np.bool_]) -> PiecewiseLinear:
    """The isotonic map from `scores` (m,) to the share of true `outcomes` (m,).

    Each block of equal probability becomes a knot at its mean score. Equal scores count as one,
    with their share of true outcomes, so the order of the answers does not matter.

    >>> fit(np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, True, False, True])).probabilities
    array([0. , 0.5, 1. ])
    """
    values, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, weights=outcomes) / counts
    regression = isotonic_regression(means, weights=counts)
    starts = regression.blocks[:-1]
    totals = np.add.reduceat(values.astype(np.float64) * counts, starts)
    knots = totals / np.add.reduceat(counts, starts)
    # Interpolation needs knots that rise, and two means of close scores may round to one number.
    rising = np.concatenate([[True], np.diff(knots) > 0])
    return PiecewiseLinear(knots[rising], np.clip(regression.x[starts][rising], 0.0, 1.0))


def calibrate(
    answers: Hits, validation: EvaluationSet[Any], logit_bias: float | None
) -> tuple[PiecewiseLinear, CalibrationInfo]:
    """Fit the map on answers (n, DEPTH); returns it and its entry for the manifest.

    The errors in the entry are over the first ten labels of each answer. Without a `logit_bias`
    the scores are probabilities already. Labels in the filter pairs are left out, because answers
    about a named item do not hold them.
    """
    scores, rows, truth = answers.scores, answers.rows, validation.truth
    outcomes = relevant(rows, truth)
    allowed = ~relevant(rows, filtered_pairs(validation.filter_pairs, *truth.shape))
    fold = np.arange(len(rows)) % 2
    cross_fitted = np.empty_like(scores)
    for held_out in (0, 1):
        fitting = allowed & (fold != held_out)[:, None]
        curve = fit(scores[fitting], outcomes[fitting])
        cross_fitted[fold == held_out] = curve.apply(scores[fold == held_out])
    first = np.s_[:, :_EVALUATED]
    mask = allowed[first]
    first_outcomes = outcomes[first][mask]
    raw = scores[first][mask].astype(np.float64)
    before = raw if logit_bias is None else expit(raw + logit_bias)
    info = CalibrationInfo(
        file=None,
        kind="isotonic",
        ece_before=round(expected_calibration_error(before, first_outcomes), 5),
        ece_after=round(expected_calibration_error(cross_fitted[first][mask], first_outcomes), 5),
    )
    return fit(scores[allowed], outcomes[allowed]), info


def write_calibration(path: Path, curve: PiecewiseLinear) -> None:
    """Write calibration.json for `service.core.calibration`, atomically."""
    knots = {
        "scores": curve.scores.tolist(),
        "probabilities": curve.probabilities.tolist(),
    }
    write_text(path, json.dumps(knots))
