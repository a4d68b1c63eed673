"""Points that come in groups, such as the volumes of a series: their standard errors and folds.

A model gets the points of a group right or wrong together. So an error that takes them as
independent is too small, and folds that cut a group in two do not hold anything out.
"""

import numpy as np
from numpy.typing import NDArray

Groups = NDArray[np.int64]
"""(n,) the group of each point, as numbers from 0. Numbers may be missing."""


def clustered_error(values: NDArray[np.floating], groups: Groups) -> float:
    """The standard error of the mean of `values` (n,), where points of a group vary together.

    It is sqrt(sum over groups of (sum of residuals)^2) / n, the cluster-robust error of a mean
    (Liang and Zeger, 1986). With groups of one it is the usual error. For two systems on the same
    points, give the differences of their values: what is hard for both then cancels out.

    >>> right = np.array([1.0, 1.0, 0.0, 0.0])
    >>> clustered_error(right, np.arange(4))
    0.25
    >>> round(clustered_error(right, np.array([0, 0, 1, 1])), 4)
    0.3536
    """
    sums = np.bincount(groups, weights=values - values.mean())
    return float(np.sqrt((sums**2).sum()) / len(values))


def fold_in_two(groups: Groups, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Whether each point (n,) is in the second of two random halves; no group is in both.

    Neither half is empty. Where all points are of one group, they are drawn one by one. Raises
    ValueError for fewer than two points.
    """
    return folds_of(groups, 2, rng) == 1


def folds_of(groups: Groups, n_folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The fold (n,) of each point, from 0: random folds of about one size; no group is in two.

    No fold is empty. Where there are fewer groups than folds, points are drawn one by one. Raises
    ValueError for fewer points than folds.
    """
    if len(groups) < n_folds:
        raise ValueError(
            f"{len(groups)} points cannot be in {n_folds} folds: give at least {n_folds}"
        )
    names, numbers = np.unique(groups, return_inverse=True)
    if len(names) < n_folds:
        numbers = np.arange(len(groups))
    sizes = np.bincount(numbers)
    order = rng.permutation(len(sizes))
    # A group belongs where its middle lies. One larger than a fold would leave a fold empty, so
    # the next group is at most one fold on, and the last ones are in the last folds.
    middles = np.cumsum(sizes[order]) - sizes[order] / 2
    wished = (n_folds * middles // len(groups)).astype(np.int64)
    place = np.arange(len(sizes))
    stepwise = np.minimum(np.minimum.accumulate(wished - place), 0) + place
    folds = np.empty(len(sizes), np.int64)
    folds[order] = np.maximum(stepwise, n_folds - len(sizes) + place)
    return folds[numbers]
