"""Maps the raw scores of an answer to probabilities, by a monotone function from the bundle.

A raw score alone says too little: the scores of one query can all lie higher than those of another
whose labels are no worse. So a score is first read relative to the level of its query's best
scores. Within an answer that keeps the order, because all its scores move alike.
`models.index.calibrate` fits the map.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from service.bundle.plain_files import read_object
from service.core.types import Float32Rows
from service.errors import ManifestInvalid

MOST_LEVEL_DEPTH: Final = 100
"""Labels that a level may look at. A bundle from a stranger would else make each search deep."""
_LEAST_PROBABILITY: Final = 1e-7
"""A probability is kept this far from 0 and 1, where its logit would be infinite. A choice: just
above the distance of 1 from the next smaller number of 32 bits."""

Floats = NDArray[np.float64]


class Calibration(Protocol):
    """Maps the raw scores of whole answers to served scores."""

    @property
    def score_kind(self) -> str:
        """The kind of a served score: `logit` or `probability`."""
        ...

    @property
    def depth(self) -> int:
        """Best labels of each query whose scores `apply` needs; 0 if each score stands alone."""
        ...

    def apply(self, scores: Float32Rows, best: Float32Rows | None = None) -> Float32Rows:
        """The served scores of answers (n, k), in the same shape and in the same order of labels.

        `best` (n, m) are the best raw scores of all labels for each query, the highest first. None
        means that `scores` are these.
        """
        ...


@dataclass(frozen=True, slots=True)
class RawScores:
    """No calibration: the service sends the index's own scores, by default inner products."""

    score_kind: str = "logit"
    depth: int = 0

    def apply(self, scores: Float32Rows, best: Float32Rows | None = None) -> Float32Rows:
        """The scores unchanged."""
        return scores


@dataclass(frozen=True, slots=True)
class Level:
    """How high the best scores of a query lie, and how much of that a score is relative to.

    The level is the log of the sum of exp(logit) over the query's best `depth` labels. `share` of
    it, in [0, 1], is taken from each logit: with 1 the scores of a query compete as in a softmax,
    with 0 each stands alone. Raw scores are logits, or if `probable` probabilities.
    """

    depth: int
    share: float
    probable: bool

    def relative(self, scores: Float32Rows, best: Float32Rows) -> Floats:
        """Scores (n, k) relative to the level of `best` (n, m), of which it reads `depth`."""
        logits = self._logits(scores)
        if logits.size == 0:
            return logits
        highest = self._logits(best[:, : self.depth])
        levels = np.logaddexp.reduce(highest, axis=1, keepdims=True)
        return np.asarray(logits - self.share * levels)

    def _logits(self, scores: Float32Rows) -> Floats:
        if not self.probable:
            return scores.astype(np.float64)
        likely = np.clip(scores.astype(np.float64), _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
        return np.asarray(np.log(likely) - np.log1p(-likely))


@dataclass(frozen=True, slots=True)
class PiecewiseLinear:
    """Linear between its knots, constant outside them.

    `scores` (n,) rises strictly; `probabilities` (n,) never falls and lies in [0, 1]. With a
    `level` the knots are of scores relative to it, without one of raw scores.
    """

    scores: Floats
    probabilities: Floats
    level: Level | None = None
    score_kind: str = "probability"

    @property
    def depth(self) -> int:
        """Best labels of each query that the level reads."""
        return 0 if self.level is None else self.level.depth

    def apply(self, scores: Float32Rows, best: Float32Rows | None = None) -> Float32Rows:
        """For each raw score of answers (n, k), the probability that its label is relevant."""
        relative: Float32Rows | Floats = scores
        if self.level is not None:
            relative = self.level.relative(scores, scores if best is None else best)
        return np.interp(relative, self.scores, self.probabilities).astype(np.float32)


def open_calibration(folder: Path, name: str | None, raw_kind: str) -> Calibration:
    """The map in the file `name`, or without one the raw scores, which are of this kind.

    Raises ManifestInvalid.
    """
    return RawScores(raw_kind) if name is None else load_calibration(folder / name)


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
    return PiecewiseLinear(scores, probabilities, _level(path, raw))


def _level(path: Path, raw: dict[str, Any]) -> Level | None:
    """The entry `level`; None where there is none, as in bundles of older code."""
    if "level" not in raw:
        return None
    level = raw["level"]
    names = ("depth", "share", "probable")
    if not isinstance(level, dict) or sorted(level) != sorted(names):
        raise ManifestInvalid(f"{path}: level must have {', '.join(names)} and nothing else")
    depth, share, probable = (level[name] for name in names)
    if type(depth) is not int or not 1 <= depth <= MOST_LEVEL_DEPTH:
        raise ManifestInvalid(f"{path}: level.depth must be a whole number, 1 to 100")
    if type(share) not in (int, float) or not 0 <= share <= 1:
        raise ManifestInvalid(f"{path}: level.share must be a number from 0 to 1")
    if type(probable) is not bool:
        raise ManifestInvalid(f"{path}: level.probable must be true or false")
    return Level(depth, float(share), probable)
