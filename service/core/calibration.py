"""Maps raw scores to probabilities by a monotone, piecewise-linear function from the bundle.

`models.index.calibrate` fits it. Because it is monotone it never reverses two labels of an answer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.bundle.plain_files import read_object
from service.core.types import Float32Rows
from service.errors import ManifestInvalid


class Calibration(Protocol):
    """Maps raw scores to served scores, element by element."""

    @property
    def score_kind(self) -> str:
        """The kind of a served score: `logit` or `probability`."""
        ...

    def apply(self, scores: Float32Rows) -> Float32Rows:
        """The served scores, in the shape of `scores`."""
        ...


@dataclass(frozen=True, slots=True)
class RawScores:
    """No calibration: the service sends the index's own scores, by default inner products."""

    score_kind: str = "logit"

    def apply(self, scores: Float32Rows) -> Float32Rows:
        """The scores unchanged."""
        return scores


@dataclass(frozen=True, slots=True)
class PiecewiseLinear:
    """Linear between its knots, constant outside them.

    `scores` (n,) rises strictly; `probabilities` (n,) never falls and lies in [0, 1].
    """

    scores: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    score_kind: str = "probability"

    def apply(self, scores: Float32Rows) -> Float32Rows:
        """For each raw score, the probability that its label is relevant."""
        return np.interp(scores, self.scores, self.probabilities).astype(np.float32)


def load_calibration(path: Path) -> PiecewiseLinear:
    """Read calibration.json; raises ManifestInvalid if it is not a monotone map into [0, 1]."""
    raw = read_object(path)
    try:
        scores, probabilities = (
            np.asarray(raw[name], np.float64) for name in ("scores", "probabilities")
        )
        numbers = {int, float}.issuperset(map(type, raw["scores"] + raw["probabilities"]))
    except (ValueError, KeyError, TypeError) as exc:
        raise ManifestInvalid(f"{path}: expected scores and probabilities: {exc}") from exc
    if not numbers:
        raise ManifestInvalid(f"{path}: scores and probabilities must be numbers")
    if scores.ndim != 1 or scores.shape != probabilities.shape or len(scores) == 0:
        raise ManifestInvalid(f"{path}: expected two lists of the same length, at least one long")
    monotone = np.all(np.diff(scores) > 0) and np.all(np.diff(probabilities) >= 0)
    inside = np.all((probabilities >= 0) & (probabilities <= 1)) and np.all(np.isfinite(scores))
    if not (monotone and inside):
        raise ManifestInvalid(f"{path}: expected rising scores and probabilities within [0, 1]")
    return PiecewiseLinear(scores, probabilities)
