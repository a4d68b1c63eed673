"""Quality of a bundle on one split of a data set, measured through the service's own code.

Answers have k = 10, the usual request, for P@k, nDCG@k, PSP@k and R@10, and k = 100 for R@100. The
effort is the bundle's default. Predictions leave out the data's filter pairs: by the bundle's item
filter, as for requests that name an item, or else by this module.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.config import Fields
from models.data.dataset import Dataset, Points, point_texts
from models.data.filters import filtered_pairs, without_cells
from models.data.splits import Grouping, joint_groups
from models.progress import track
from models.quality.groups import Groups
from models.quality.metrics import evaluate_ranking, remove_filtered, standard_errors
from models.quality.ranking import spare
from service.bundle.manifest import EXACT, QualityInfo
from service.core.engine import Engine
from service.core.types import Query

_QUERIES_AT_ONCE = 256
"""Our choice: batches that keep the cores busy, and progress that moves every few seconds."""
_USUAL_K = 10
_DEEP_K = 100
_RECALL_TEXTS = 2000
"""Enough for a recall to about a tenth of a percent; more texts only take more exact searches."""


@dataclass(frozen=True, slots=True)
class Part:
    """Points to score on, with their filter pairs (None: none).

    `groups` (n,) are their series. `seen` (n,) are those whose series has a training point.
    """

    split: str
    points: Points
    filtered: NDArray[np.int64] | None
    groups: Groups
    seen: NDArray[np.bool_]

    @classmethod
    def test(cls, dataset: Dataset, fields: Fields, grouping: Grouping = "series") -> Self:
        """The test points. Raises ValueError where the data has none."""
        points = dataset.test
        if points is None:
            raise ValueError(f"data set {dataset.name} has no test split")
        trained, groups = joint_groups(grouping, fields, dataset.train, points)
        seen = np.isin(groups, trained)
        return cls("test", points, dataset.test_filter, groups, seen)

    @classmethod
    def train(cls, dataset: Dataset, fields: Fields, grouping: Grouping = "series") -> Self:
        """The training points, which show how much a model has memorised."""
        points = dataset.train
        [groups] = joint_groups(grouping, fields, points)
        return cls("train", points, dataset.train_filter, groups, np.ones(len(points), np.bool_))

    @classmethod
    def validation(
        cls, dataset: Dataset, rows: NDArray[np.int64], fields: Fields, grouping: Grouping
    ) -> Self:
        """The training points `rows`, which everything was chosen on and nothing trained."""
        whole = cls.train(dataset, fields, grouping)
        filtered = filtered_pairs(whole.filtered, *dataset.train.labels.shape)[rows]
        points = whole.points.take(rows)
        points = replace(points, labels=without_cells(points.labels, filtered))
        pairs = np.stack(filtered.tocoo().coords, axis=1).astype(np.int64)
        others = np.setdiff1d(np.arange(len(dataset.train)), rows)
        seen = np.isin(whole.groups[rows], whole.groups[others])
        return cls("validation", points, pairs, whole.groups[rows], seen)


def evaluate(
    engine: Engine, dataset: Dataset, part: Part, fields: Fields, a: float, b: float
) -> QualityInfo:
    """Score a part of the data set, whole and without the points whose series was trained on.

    `a` and `b` are the propensity constants (Jain et al., KDD 2016). Figures are in percent. The
    index's recall is over the first 2,000 texts.
    """
    points = part.points
    texts = point_texts(points, fields)
    effort = engine.manifest.defaults.effort
    usual, deep = (
        score(rank(engine, part, texts, k), part, dataset, a, b) for k in (_USUAL_K, _DEEP_K)
    )
    recall = 100 * _recall_against_exact(engine, texts[:_RECALL_TEXTS])
    return QualityInfo(
        split=part.split,
        n_queries=int(np.count_nonzero(np.diff(points.labels.indptr))),  # others are skipped
        effort=effort,
        propensity_a=a,
        propensity_b=b,
        metrics=_by_depth(usual.metrics, deep.metrics) | {"index_recall10": round(recall, 3)},
        errors=usual.errors,
        n_seen=int(part.seen.sum()),
        unseen=_by_depth(usual.unseen, deep.unseen),
    )


@dataclass(frozen=True, slots=True)
class Score:
    """Figures of rankings, in percent, by the names of `evaluate_ranking`.

    `errors` are standard errors of some. `unseen` are the figures without the points whose series
    was trained on, empty if there are none.
    """

    metrics: dict[str, float]
    errors: dict[str, float]
    unseen: dict[str, float]


def score(ranked: NDArray[np.int64], part: Part, dataset: Dataset, a: float, b: float) -> Score:
    """Score label rows (n, K) of the points of a part; `a` and `b` as for `evaluate`."""
    truth = part.points.labels
    counts = np.bincount(dataset.train.labels.indices, minlength=len(dataset.labels))
    constants = counts, len(dataset.train), a, b
    new = np.flatnonzero(~part.seen & (np.diff(truth.indptr) > 0))
    unseen: dict[str, float] = {}
    if part.seen.any() and len(new):
        unseen = evaluate_ranking(ranked[new], truth[new], *constants)
    return Score(
        _rounded(evaluate_ranking(ranked, truth, *constants)),
        _rounded(standard_errors(ranked, truth, part.groups)),
        _rounded(unseen),
    )


def _by_depth(usual: dict[str, float], deep: dict[str, float]) -> dict[str, float]:
    """The figures at 100 of deep answers, and all others of usual ones."""
    return {name: (deep if name.endswith("r100") else usual)[name] for name in usual}


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in figures.items()}


def rank(engine: Engine, part: Part, texts: Sequence[str], k: int) -> NDArray[np.int64]:
    """Label rows (n, 100) of the answers at k to a part's texts, without filter pairs."""
    effort = engine.manifest.defaults.effort
    if engine.item_filter is None:
        return _rank(engine, texts, k, effort, part.filtered)
    return _rank_items(engine, texts, part.points.uids, k, effort)


def _rank(
    engine: Engine,
    texts: Sequence[str],
    k: int,
    effort: str,
    filtered: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Label rows (n, 100) of the answer to each text, padded with -1; blank texts count too."""
    if filtered is None or not len(filtered):
        return _ask(engine, [Query(text, k, effort) for text in texts])
    deep = k + spare(filtered)
    ranked = _ask(engine, [Query(text, deep, effort) for text in texts])
    ranked = np.asarray(remove_filtered(ranked, filtered), np.int64)
    ranked[:, k:] = -1
    return ranked[:, :_DEEP_K]


def _rank_items(
    engine: Engine, texts: Sequence[str], item_ids: Sequence[str], k: int, effort: str
) -> NDArray[np.int64]:
    """Label rows (n, 100) as from `_rank`, but filtered by the bundle, for `item_ids` (n,)."""
    pairs = zip(texts, item_ids, strict=True)
    return _ask(engine, [Query(text, k, effort, item_id) for text, item_id in pairs])


def _ask(engine: Engine, queries: Sequence[Query]) -> NDArray[np.int64]:
    """Label rows of every answer, padded with -1 to the largest k, at least 100."""
    deepest = max((query.k for query in queries), default=0)
    ranked = np.full((len(queries), max(_DEEP_K, deepest)), -1, np.int64)
    # Sort by length, because a batch is padded to its longest text.
    order = sorted(range(len(queries)), key=lambda row: len(queries[row].text))
    starts = range(0, len(queries), _QUERIES_AT_ONCE)
    for start in track(starts, len(starts), f"evaluating at k={deepest}"):
        rows = order[start : start + _QUERIES_AT_ONCE]
        answers = engine.predict([queries[row] for row in rows]).predictions
        for row, answer in zip(rows, answers, strict=True):
            ranked[row, : len(answer.rows)] = answer.rows
    return ranked


def _recall_against_exact(engine: Engine, texts: Sequence[str]) -> float:
    """Mean share (0 to 1) of the exact top 10 that the default effort finds."""
    effort = engine.manifest.defaults.effort
    ranked = _rank(engine, texts, _USUAL_K, effort)[:, :_USUAL_K]
    exact = _rank(engine, texts, _USUAL_K, EXACT)[:, :_USUAL_K]
    return float((ranked[:, :, None] == exact[:, None, :]).any(axis=1).mean())
