"""Quality of a bundle on one split of a data set, measured through the service's own code.

Answers have k = 10, the usual request, for P@k, nDCG@k, PSP@k and R@10, and k = 100 for R@100. The
effort is the bundle's default. Predictions leave out the data's filter pairs: by the bundle's item
filter, as for requests that name an item, or else by this module.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.data.dataset import Dataset, Fields, Points, point_texts
from models.progress import track
from models.quality.metrics import evaluate_ranking, remove_filtered
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


def evaluate(
    engine: Engine, dataset: Dataset, split: str, fields: Fields, a: float, b: float
) -> QualityInfo:
    """Score the split `test`, or `train` to see how much the model has memorised.

    `a` and `b` are the propensity constants (Jain et al., KDD 2016). Figures are in percent. The
    index's recall is over the first 2,000 texts. Raises ValueError if the data has no such split.
    """
    points, filtered = _part(dataset, split)
    counts = np.bincount(dataset.train.labels.indices, minlength=len(dataset.labels))
    texts = point_texts(points, fields)
    effort = engine.manifest.defaults.effort
    figures: dict[str, float] = {}
    for k in (_USUAL_K, _DEEP_K):
        if engine.item_filter is None:
            ranked = _rank(engine, texts, k, effort, filtered)
        else:
            ranked = _rank_items(engine, texts, points.uids, k, effort)
        found = evaluate_ranking(ranked, points.labels, counts, len(dataset.train), a, b)
        figures |= found if not figures else {n: v for n, v in found.items() if n.endswith("r100")}
    figures["index_recall10"] = 100 * _recall_against_exact(engine, texts[:_RECALL_TEXTS])
    return QualityInfo(
        split=split,
        n_queries=int(np.count_nonzero(np.diff(points.labels.indptr))),  # others are skipped
        effort=effort,
        propensity_a=a,
        propensity_b=b,
        metrics={name: round(value, 3) for name, value in figures.items()},
    )


def _part(dataset: Dataset, split: str) -> tuple[Points, NDArray[np.int64] | None]:
    if split == "train":
        return dataset.train, dataset.train_filter
    if split == "test" and dataset.test is not None:
        return dataset.test, dataset.test_filter
    raise ValueError(f"data set {dataset.name} has no {split} split")


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
