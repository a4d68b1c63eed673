"""Calibration: isotonic regression from raw scores to probabilities, on validation answers.

The map is fitted on the exact top 50 labels of each validation query, so it covers low scores too.
It is of scores relative to the level of their query (`service.core.calibration.Level`), because raw
scores compare poorly across queries (docs/decisions/0028). The share of the level, and the errors
on record, are cross-fitted: the map of one half of the queries is judged on the other half, and no
series is in both. Isotonic regression for multi-label ranking is from arXiv 2411.04276.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import expit

from models.data.filters import filtered_pairs
from models.data.prepare import CALIBRATION_DEPTH
from models.quality.groups import Groups, fold_in_two
from models.quality.metrics import expected_calibration_error, relevant
from models.quality.ranking import EvaluationSet
from service.atomic import write_text
from service.bundle.manifest import CalibrationInfo
from service.core.calibration import Level, PiecewiseLinear
from service.core.types import Hits

DEPTH = CALIBRATION_DEPTH
_EVALUATED = 10
"""Labels of an answer that the error is measured on: the default k (`release.default_k`)."""
LEVEL_DEPTH: Final = 10
"""Labels that a level looks at: the default k, so that an answer of ten needs no deeper search. 20
or 50 labels gain little more (docs/decisions/0028)."""
SHARES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the level to choose from: from each score for itself to a softmax over the answer."""
_REPEATS: Final = 3
"""Draws of the halves. A choice: on the demo's data single draws differ by up to 0.03 in the error
of the first label."""
_LEAST: Final = 1e-4
"""A probability counts in the log loss as this far from 0 and 1. A choice: one wrong answer of a
label that no answer of the other half had then costs 9, not all there is."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def fit(
    scores: NDArray[np.floating], outcomes: Mask, level: Level | None = None
) -> PiecewiseLinear:
    """The isotonic map from `scores` (m,) to the share of true `outcomes` (m,).

    Each block of equal probability becomes a knot at its mean score. Equal scores count as one,
    with their share of true outcomes, so the order of the answers does not matter. With a `level`
    the scores are relative to it.

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
    probabilities = np.clip(regression.x[starts][rising], 0.0, 1.0)
    return PiecewiseLinear(knots[rising], probabilities, level)


def calibrate(
    answers: Hits, validation: EvaluationSet[Any], logit_bias: float | None
) -> tuple[PiecewiseLinear, CalibrationInfo]:
    """Fit the map on answers (n, DEPTH); returns it and its entry for the manifest.

    The share of the level is the one with the least log loss over the first ten labels. The errors
    in the entry are over these, and over the first label alone. Without a `logit_bias` the scores
    are probabilities already. Labels in the filter pairs are left out, because answers about a
    named item do not hold them.
    """
    judged = _Judged.of(answers, validation)
    levels = [Level(LEVEL_DEPTH, share, logit_bias is None) for share in SHARES]
    stated = [judged.cross_fitted(level) for level in levels]
    best = int(np.argmin([judged.log_loss(each) for each in stated]))
    raw = answers.scores.astype(np.float64)
    before = [raw if logit_bias is None else expit(raw + logit_bias)]
    info = CalibrationInfo(
        file=None,
        kind="isotonic",
        ece_before=judged.error(before, _EVALUATED),
        ece_after=judged.error(stated[best], _EVALUATED),
        first_before=judged.error(before, 1),
        first_after=judged.error(stated[best], 1),
    )
    return judged.fit(levels[best], np.ones(len(raw), np.bool_)), info


@dataclass(frozen=True, slots=True)
class _Judged:
    """Answers with what became of them: all arrays are (n, DEPTH), `groups` (n,).

    `allowed` is false for labels in filter pairs. `rank` counts the allowed labels up to each.
    """

    scores: NDArray[np.float32]
    outcomes: Mask
    allowed: Mask
    rank: NDArray[np.int64]
    groups: Groups

    @classmethod
    def of(cls, answers: Hits, validation: EvaluationSet[Any]) -> Self:
        truth = validation.truth
        filtered = filtered_pairs(validation.filter_pairs, *truth.shape)
        allowed = ~relevant(answers.rows, filtered)
        outcomes = relevant(answers.rows, truth)
        rank = np.cumsum(allowed, axis=1, dtype=np.int64)
        return cls(answers.scores, outcomes, allowed, rank, validation.groups)

    def fit(self, level: Level, rows: Mask) -> PiecewiseLinear:
        """The map fitted on the answers of `rows` (n,)."""
        relative = level.relative(self.scores, self.scores)
        inside = self.allowed & rows[:, None]
        return fit(relative[inside], self.outcomes[inside], level)

    def cross_fitted(self, level: Level) -> list[Floats]:
        """For each draw of two halves, the probabilities (n, DEPTH) by the map of the other half.

        Queries without an allowed label are in neither half, since nothing can be fitted on them.
        """
        usable = np.flatnonzero(self.allowed.any(axis=1))
        draws = []
        for seed in range(_REPEATS):
            second = np.zeros(len(self.scores), np.bool_)
            second[usable] = fold_in_two(self.groups[usable], np.random.default_rng(seed))
            stated = np.empty(self.scores.shape)
            for half in (second, ~second):
                stated[half] = self.fit(level, ~half).apply(self.scores[half])
            draws.append(stated)
        return draws

    def log_loss(self, draws: list[Floats]) -> float:
        """Mean log loss over the first ten allowed labels of each answer."""
        first = self.allowed & (self.rank <= _EVALUATED)
        right = self.outcomes[first]
        kept = [np.clip(stated[first], _LEAST, 1 - _LEAST) for stated in draws]
        return float(-np.mean([np.log(np.where(right, each, 1 - each)) for each in kept]))

    def error(self, draws: list[Floats], n_first: int) -> float:
        """Expected calibration error of the first allowed labels, the mean over the draws."""
        first = self.allowed & (self.rank <= n_first)
        right = self.outcomes[first]
        errors = [expected_calibration_error(stated[first], right) for stated in draws]
        return round(float(np.mean(errors)), 5)


def write_calibration(path: Path, curve: PiecewiseLinear) -> None:
    """Write calibration.json for `service.core.calibration`, atomically."""
    content: dict[str, Any] = {
        "scores": curve.scores.tolist(),
        "probabilities": curve.probabilities.tolist(),
    }
    if curve.level is not None:
        content["level"] = asdict(curve.level)
    write_text(path, json.dumps(content))
