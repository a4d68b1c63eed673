"""Not worse: compares a candidate with an earlier bundle on the same points, before it is sealed.

Both answer every point. The interval of the difference is a percentile bootstrap (Efron, 1979) over
groups of points, because the points of a series are right or wrong together.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.config import Config
from models.data.dataset import Dataset, point_texts
from models.errors import ReleaseError
from models.quality.evaluate import Part, rank
from models.quality.groups import Groups
from models.quality.metrics import remove_filtered
from models.rng import Rng
from service.core.engine import Engine

RESAMPLES: Final = 2000
"""Enough for the ends of a 95 % interval (Efron and Tibshirani, 1993, chapter 13)."""

_K = 10


@dataclass(frozen=True, slots=True)
class Comparison:
    """P@1 of a candidate and of an earlier bundle on the same points, in percent.

    `low` and `high` are the ends of the 95 % interval of the difference.
    """

    bundle: str
    split: str
    n_points: int
    p_at_1: float
    p_at_1_before: float
    low: float
    high: float

    def sentence(self) -> str:
        """Both figures and the interval."""
        return (
            f"P@1 {self.p_at_1:.2f} against {self.p_at_1_before:.2f} of bundle {self.bundle[:12]} "
            f"on the same {self.n_points:,} points ({self.split} split), difference between "
            f"{self.low:+.2f} and {self.high:+.2f}"
        )


def check_not_worse(
    engine: Engine, dataset: Dataset, part: Part, config: Config
) -> dict[str, Any] | None:
    """Compare with `release.not_worse_than`; returns the comparison, None without such a bundle.

    Raises ReleaseError where the interval reaches below the margin, and BundleError.
    """
    limits = config.release
    if not limits.not_worse_than:
        return None
    other = Engine.open(Path(limits.not_worse_than), device="cpu")
    comparison = compare(engine, other, dataset, part, config.seed)
    if comparison.low < -limits.not_worse_margin:
        raise ReleaseError(
            f"{comparison.sentence()}: the candidate may be worse by more than "
            f"release.not_worse_margin ({limits.not_worse_margin:g}), so it is not sealed"
        )
    return asdict(comparison)


def compare(engine: Engine, other: Engine, dataset: Dataset, part: Part, seed: int) -> Comparison:
    """Have both engines answer the points of a part that have labels."""
    right, before = (_first_is_right(each, dataset, part) for each in (engine, other))
    labelled = np.diff(part.points.labels.indptr) > 0
    right, before, groups = right[labelled], before[labelled], part.groups[labelled]
    low, high = bootstrap_interval(100 * (right - before), groups, Rng.from_seed(seed).numpy)
    return Comparison(
        bundle=other.manifest.bundle_id,
        split=part.split,
        n_points=len(right),
        p_at_1=round(100 * float(right.mean()), 3),
        p_at_1_before=round(100 * float(before.mean()), 3),
        low=round(low, 3),
        high=round(high, 3),
    )


def bootstrap_interval(
    values: NDArray[np.float64], groups: Groups, rng: np.random.Generator
) -> tuple[float, float]:
    """The 95 % interval of the mean of `values` (n,), from resampled groups (n,)."""
    _, numbers = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(numbers, weights=values), np.bincount(numbers)
    means = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = rng.integers(len(sums), size=len(sums))
        means[i] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _first_is_right(engine: Engine, dataset: Dataset, part: Part) -> NDArray[np.float64]:
    """Whether each point's first answer (n,) is one of its labels; labels are told by their ids."""
    row_of = {uid: row for row, uid in enumerate(dataset.labels.uids)}
    names = (engine.labels[row].label_id for row in range(len(engine.labels)))
    rows = np.array([*(row_of.get(name, -1) for name in names), -1], np.int64)  # -1 stays -1
    texts = point_texts(part.points, engine.manifest.config["data"]["fields"])
    ranked = rows[rank(engine, replace(part, filtered=None), texts, _K)]
    if part.filtered is not None and len(part.filtered):
        ranked = np.asarray(remove_filtered(ranked, part.filtered), np.int64)
    first, places = ranked[:, 0], np.arange(len(texts))
    relevant = part.points.labels[places, np.maximum(first, 0)] > 0
    return np.asarray(relevant, np.float64).ravel() * (first >= 0)
