"""Ranking quality as pure functions: precision, nDCG, propensity-scored precision, recall, ECE.

`ranked` (n, K) holds label rows, best first, with -1 only as padding at the end. `truth` is sparse
(n, n_labels); its non-zero entries are the relevant labels, whatever their values. Definitions
follow the Extreme Classification Repository. Each function returns a fraction, but
`evaluate_ranking` returns percent. Queries without a label are skipped. No function changes its
arguments. A wrong shape or value raises ValueError.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from models.quality.groups import Groups, clustered_error

LabelRows = NDArray[np.integer]  # (n, K)
Floats = NDArray[np.float64]


def precision_at_k(ranked: LabelRows, truth: csr_array, k: int) -> float:
    """Mean share of the first k ranked labels that are relevant.

    Two queries, relevant {1, 3} and {2}: one hit in two, no hit in two, so (1/2 + 0/2) / 2.

    >>> truth = csr_array([[0, 1, 0, 1, 0], [0, 0, 1, 0, 0]])
    >>> precision_at_k(np.array([[3, 4, 1], [0, 4, 2]]), truth, k=2)
    0.25
    """
    return _Marks.of(ranked, truth).precision(k)


def precision_of_each(ranked: LabelRows, truth: csr_array, k: int) -> Floats:
    """P@k of every query that has a label, in their order; `precision_at_k` is the mean.

    >>> truth = csr_array([[0, 1, 0], [0, 0, 0], [0, 0, 1]])
    >>> precision_of_each(np.array([[1, 2], [0, 1], [0, 1]]), truth, k=1)
    array([1., 0.])
    """
    return _Marks.of(ranked, truth).precision_of_each(k)


def ndcg_at_k(ranked: LabelRows, truth: csr_array, k: int) -> float:
    """Discounted gain of the first k over that of the best ranking, averaged over queries.

    Relevant {1, 3}, hits at ranks 1 and 3: (1/log2(2) + 1/log2(4)) / (1/log2(2) + 1/log2(3)).

    >>> truth = csr_array([[0, 1, 0, 1, 0]])
    >>> round(ndcg_at_k(np.array([[3, 4, 1]]), truth, k=3), 4)
    0.9197
    """
    return _Marks.of(ranked, truth).ndcg(k)


def ndcg_of_each(ranked: LabelRows, truth: csr_array, k: int) -> Floats:
    """nDCG@k of every query that has a label, in their order; `ndcg_at_k` is the mean.

    >>> truth = csr_array([[0, 1, 0], [0, 0, 0], [0, 0, 1]])
    >>> ndcg_of_each(np.array([[1, 2], [0, 1], [1, 2]]), truth, k=2).round(4)
    array([1.    , 0.6309])
    """
    return _Marks.of(ranked, truth).ndcg_of_each(k)


def recall_at_k(ranked: LabelRows, truth: csr_array, k: int) -> float:
    """Mean share of a query's relevant labels that are among the first k.

    The share is of all its labels, even of more than k: {1, 3} with one hit is 1/2.

    >>> recall_at_k(np.array([[3, 4, 1]]), csr_array([[0, 1, 0, 1, 0]]), k=1)
    0.5
    """
    return _Marks.of(ranked, truth).recall(k)


def psp_at_k(ranked: LabelRows, truth: csr_array, inverse_propensities: Floats, k: int) -> float:
    """Propensity-scored precision: weight of the hits over weight of the best possible ranking.

    Both are summed over all queries before dividing (a ratio of means). With weights 2 for label 0
    and 6 for label 1, both relevant, and label 0 ranked first: 2 of 6 at k = 1.

    >>> truth = csr_array([[1, 1, 0]])
    >>> round(psp_at_k(np.array([[0, 2, 1]]), truth, np.array([2.0, 6.0, 1.0]), k=1), 4)
    0.3333
    """
    return _Marks.of(ranked, truth).psp(inverse_propensities, k)


def inverse_propensity(
    train_label_counts: ArrayLike, n_train: int, a: float = 0.55, b: float = 1.5
) -> Floats:
    """One weight per label, the larger the rarer: 1 + C (n + b)^-a with C = (ln N - 1)(b + 1)^a.

    A and B belong to the data set: 0.6, 2.6 for Amazon, 0.5, 0.4 for Wikipedia, else 0.55, 1.5 are
    usual (Jain et al., KDD 2016). Figures under different pairs do not compare. A label seen once
    weighs ln N under any pair: here ln 1000 = 6.9078.

    >>> inverse_propensity([1, 10, 100], n_train=1000).round(4)
    array([6.9078, 3.5521, 1.7704])
    """
    counts = np.asarray(train_label_counts, dtype=np.float64)
    if n_train < 3:
        raise ValueError(f"n_train is {n_train}; propensities need at least 3 training points")
    if counts.size and counts.min() < 0:
        raise ValueError("train_label_counts has a negative count; give training points per label")
    scale = (np.log(n_train) - 1.0) * (b + 1.0) ** a
    return np.asarray(1.0 + scale * (counts + b) ** -a)


def label_bands(train_label_counts: ArrayLike) -> NDArray[np.int8]:
    """0, 1, 2 for head, torso, tail: thirds of the training positives, not of the labels.

    Labels are sorted by training count, largest first (ties by row). A label is head while those
    before it hold less than a third of all positives, torso while less than two thirds, else tail;
    labels without a training point are tail. Of 12 positives, 6 precede the second label:

    >>> label_bands([6, 3, 1, 1, 1, 0])
    array([0, 1, 2, 2, 2, 2], dtype=int8)
    """
    counts = np.asarray(train_label_counts, dtype=np.int64)
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    bands = np.full(len(counts), 2, dtype=np.int8)
    total = counts.sum()
    bands[order[3 * before < 2 * total]] = 1
    bands[order[3 * before < total]] = 0
    bands[counts == 0] = 2
    return bands


def relevant(rows: NDArray[np.int64], truth: csr_array) -> NDArray[np.bool_]:
    """A mask (n, k): whether each label of `rows` (n, k) is one of its query's true labels."""
    n_labels = truth.shape[1]
    true_rows = np.repeat(np.arange(truth.shape[0]), np.diff(truth.indptr))
    keys = true_rows * n_labels + truth.indices
    return np.isin(np.arange(len(rows))[:, None] * n_labels + rows, keys)


def remove_filtered(ranked: LabelRows, pairs: NDArray[np.integer]) -> LabelRows:
    """The rankings without the pairs (row, label) (m, 2); the rest moves up, and -1 fills the end.

    >>> remove_filtered(np.array([[5, 7, 9], [7, 5, 9]]), np.array([[0, 7], [1, 2]]))
    array([[ 5,  9, -1],
           [ 7,  5,  9]])
    """
    result = np.array(ranked)
    pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    if not pairs.size or not result.size:
        return result
    if pairs.min() < 0 or pairs[:, 0].max() >= len(result):
        raise ValueError(f"filter pairs name rows outside the {len(result)} rows of the rankings")
    stride = max(int(result.max()), int(pairs[:, 1].max())) + 1
    rows = np.unique(pairs[:, 0])
    part = result[rows]
    removed = np.isin(rows[:, None] * stride + part, pairs[:, 0] * stride + pairs[:, 1])
    removed |= part < 0
    part[removed] = -1
    order = np.argsort(removed, axis=1, kind="stable")
    result[rows] = np.take_along_axis(part, order, axis=1)
    return result


def expected_calibration_error(
    probabilities: ArrayLike, outcomes: ArrayLike, n_bins: int = 15
) -> float:
    """Mean gap between stated probability and observed rate, over bins of equal mass.

    Equal probabilities always share a bin, so the order of the input does not matter. Two bins of
    two: |0.15 - 0| and |0.85 - 0.5|, each half of the mass, give 0.075 + 0.175.

    >>> round(expected_calibration_error([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 0], n_bins=2), 4)
    0.25
    """
    stated = np.asarray(probabilities, dtype=np.float64)
    observed = np.asarray(outcomes, dtype=np.float64)
    if stated.ndim != 1 or stated.shape != observed.shape or not stated.size:
        raise ValueError(
            f"probabilities {stated.shape} and outcomes {observed.shape} must be two lists of the "
            "same length, at least 1"
        )
    if not ((stated >= 0) & (stated <= 1)).all() or not np.isin(observed, (0, 1)).all():
        raise ValueError("probabilities must lie from 0 to 1 and outcomes be 0 or 1")
    if n_bins < 1:
        raise ValueError(f"n_bins is {n_bins}; give at least 1")
    # The bin is that of the first equal value in sorted order: ties stay together.
    first = np.searchsorted(np.sort(stated), stated, side="left")
    bins = first * n_bins // len(stated)
    return float(np.abs(np.bincount(bins, weights=stated - observed)).sum() / len(stated))


def standard_errors(ranked: LabelRows, truth: csr_array, groups: Groups) -> dict[str, float]:
    """Standard errors of `p1`, `p3`, `p5` and `ndcg5` in percent; queries of a group vary together.

    `groups` (n,) are of all queries, those without a label too.
    """
    marks = _Marks.of(ranked, truth)
    scored = groups[np.diff(csr_array(truth > 0).indptr) > 0]
    values = {f"p{k}": marks.precision_of_each(k) for k in (1, 3, 5)}
    values["ndcg5"] = marks.ndcg_of_each(5)
    return {name: 100 * clustered_error(each, scored) for name, each in values.items()}


def evaluate_ranking(
    ranked: LabelRows,
    truth: csr_array,
    train_label_counts: ArrayLike,
    n_train: int,
    a: float = 0.55,
    b: float = 1.5,
) -> dict[str, float]:
    """All figures by name (`p1`, `ndcg3`, `psp5`, `r100`, ...), in percent.

    `a` and `b` are the propensity constants. Figures of a band of `label_bands` start with its
    name, such as `tail_p1`; a band has none where no query has a label of it. For a band, the truth
    is restricted to its labels, and the ranking is not. So a head label above a tail label takes a
    place from the tail's precision. `ranked` needs 100 columns, or as many as there are labels.
    """
    marks = _Marks.of(ranked, truth)
    counts = np.asarray(train_label_counts)
    if counts.shape != (truth.shape[1],):
        raise ValueError(
            f"train_label_counts has shape {counts.shape} and truth {truth.shape[1]} labels; "
            "give one count per label"
        )
    weights, bands = inverse_propensity(counts, n_train, a, b), label_bands(counts)
    shares = {f"p{k}": marks.precision(k) for k in (1, 3, 5)}
    shares |= {f"ndcg{k}": marks.ndcg(k) for k in (1, 3, 5)}
    shares |= {f"psp{k}": marks.psp(weights, k) for k in (1, 3, 5)}
    shares |= {f"r{k}": marks.recall(k) for k in (10, 100)}
    for number, name in enumerate(("head", "torso", "tail")):
        band = marks.restrict(bands == number)
        if band.n_queries:
            shares |= {f"{name}_p{k}": band.precision(k) for k in (1, 3, 5)}
            shares[f"{name}_ndcg5"] = band.ndcg(5)
            shares |= {f"{name}_r{k}": band.recall(k) for k in (10, 100)}
    return {name: 100 * share for name, share in shares.items()}


@dataclass(frozen=True, slots=True)
class _Marks:
    """Rankings with a mark for each place, right or wrong, of the queries that have a label."""

    ranked: LabelRows  # (n, K)
    hits: NDArray[np.bool_]  # (n, K)
    truth_rows: NDArray[np.int64]  # (n_positives,), ascending
    truth_labels: NDArray[np.int64]  # (n_positives,)
    n_labels: int

    @classmethod
    def of(cls, ranked: LabelRows, truth: csr_array) -> Self:
        ranked = np.asarray(ranked)
        _check_ranked(ranked, truth.shape)
        n_labels = truth.shape[1]
        relevant = csr_array(truth).astype(bool)  # a copy: the next two lines work in place
        relevant.sum_duplicates()
        relevant.eliminate_zeros()
        per_query = np.diff(relevant.indptr)
        has_labels = per_query > 0
        if not has_labels.any():
            raise ValueError("no row of truth has a label, so there is nothing to average")
        rows = np.repeat(np.cumsum(has_labels) - 1, per_query).astype(np.int64)
        labels = relevant.indices.astype(np.int64)
        ranked = ranked if has_labels.all() else ranked[has_labels]
        # One sorted key per (row, label) pair; -1 must not reach into the row before.
        keys = rows * n_labels + labels
        ranked_keys = np.arange(len(ranked))[:, None] * n_labels + ranked
        place = np.minimum(np.searchsorted(keys, ranked_keys), len(keys) - 1)
        hits = (keys[place] == ranked_keys) & (ranked >= 0)
        return cls(ranked, hits, rows, labels, n_labels)

    def restrict(self, in_band: NDArray[np.bool_]) -> Self:
        """The same rankings with only these labels as truth; queries without one are left out."""
        inside = in_band[self.truth_labels]
        old_rows, rows = np.unique(self.truth_rows[inside], return_inverse=True)
        ranked = self.ranked[old_rows]
        hits = (
            self.hits[old_rows] & in_band[ranked]
        )  # -1 is never a hit, so its value here does not matter
        return type(self)(ranked, hits, rows, self.truth_labels[inside], self.n_labels)

    @property
    def n_queries(self) -> int:
        return len(self.ranked)

    def precision(self, k: int) -> float:
        return float(self._first(k).sum() / (k * self.n_queries))

    def precision_of_each(self, k: int) -> Floats:
        return np.asarray(self._first(k).sum(axis=1) / k)

    def recall(self, k: int) -> float:
        return float((self._first(k).sum(axis=1) / self._labels_per_query()).mean())

    def ndcg(self, k: int) -> float:
        return float(self.ndcg_of_each(k).mean())

    def ndcg_of_each(self, k: int) -> Floats:
        hits = self._first(k)
        discount = 1.0 / np.log2(np.arange(2, k + 2))  # (k,)
        best = np.cumsum(discount)[np.minimum(self._labels_per_query(), k) - 1]
        gain: Floats = hits @ discount[: hits.shape[1]]
        return gain / best

    def psp(self, weights: Floats, k: int) -> float:
        if weights.shape != (self.n_labels,):
            raise ValueError(
                f"inverse_propensities has shape {weights.shape} and truth {self.n_labels} labels; "
                "give one weight per label"
            )
        hits = self._first(k)
        hit_weight = weights[self.ranked[:, : hits.shape[1]][hits]].sum()
        heaviest = np.lexsort((-weights[self.truth_labels], self.truth_rows))
        starts = np.searchsorted(self.truth_rows, np.arange(self.n_queries))
        rank = np.arange(len(heaviest)) - starts[self.truth_rows]
        return float(hit_weight / weights[self.truth_labels[heaviest]][rank < k].sum())

    def _labels_per_query(self) -> NDArray[np.int64]:
        return np.bincount(self.truth_rows, minlength=self.n_queries)

    def _first(self, k: int) -> NDArray[np.bool_]:
        if k < 1:
            raise ValueError(f"k is {k}; give at least 1")
        width = self.hits.shape[1]
        # With fewer columns than k the result would silently be the metric at a smaller k, unless
        # the columns hold all labels.
        if width < min(k, self.n_labels):
            raise ValueError(
                f"ranked has {width} columns and k is {k}; rank at least {k} labels, or pad with "
                "-1 where a query has no more"
            )
        return self.hits[:, :k]


def _check_ranked(ranked: LabelRows, truth_shape: tuple[int, int]) -> None:
    if ranked.ndim != 2 or ranked.dtype.kind not in "iu":
        raise ValueError(
            f"ranked is {ranked.dtype} of shape {ranked.shape}; give label rows as a whole-number "
            "(n, K) array"
        )
    if len(ranked) != truth_shape[0]:
        raise ValueError(
            f"ranked has {len(ranked)} rows and truth {truth_shape[0]}; give one per query"
        )
    if not ranked.size:
        return
    if ranked.min() < -1 or ranked.max() >= truth_shape[1]:
        raise ValueError(
            f"ranked holds {ranked.min()} to {ranked.max()}; label rows go from 0 to "
            f"{truth_shape[1] - 1}, and -1 is padding"
        )
    if ((ranked[:, :-1] < 0) & (ranked[:, 1:] >= 0)).any():
        raise ValueError("ranked has -1 before a label; padding belongs at the end of a row")
    in_order = np.sort(ranked, axis=1)
    if ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)).any():
        raise ValueError("ranked names a label twice in one row; rank each label once")
