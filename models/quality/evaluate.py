"""Quality of a bundle through the very code that serves it, on one split of a data set.

P@k, nDCG@k, PSP@k and R@10 are of answers asked for with k = 10, as users ask; R@100 is of answers
with k = 100. All at the bundle's default effort. Filter pairs, where the data has them, are left
out of the predictions: by the bundle's own item filter, as for anyone who names the item, or here
where the bundle has none.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.data.dataset import Dataset, Fields, Points, point_texts
from models.progress import track
from models.quality.metrics import Quality, evaluate_ranking, remove_filtered
from models.quality.ranking import spare
from service.bundle.manifest import EXACT, QualityInfo
from service.core.engine import Engine
from service.core.types import Query

_QUERIES_AT_ONCE = 256
_AS_USERS_ASK = 10
_DEEP = 100
_RECALL_TEXTS = 2000


def evaluate(
    engine: Engine, dataset: Dataset, split: str, fields: Fields, a: float, b: float
) -> QualityInfo:
    """Score the `test` split, or `train` to see what was memorised. Raises ValueError.

    The index's recall is of the first 2,000 texts, which tells it to a tenth of a percent.
    """
    points, filtered = _part(dataset, split)
    counts = np.bincount(dataset.train.labels.indices, minlength=len(dataset.labels))
    texts = point_texts(points, fields)
    effort = engine.manifest.defaults.effort
    figures: dict[str, float] = {}
    for k in (_AS_USERS_ASK, _DEEP):
        if engine.item_filter is None:
            ranked = _rank(engine, texts, k, effort, filtered)
        else:
            ranked = _rank_items(engine, texts, points.uids, k, effort)
        quality = evaluate_ranking(ranked, points.labels, counts, len(dataset.train), a, b)
        flat = flatten(quality)
        figures |= flat if not figures else {n: v for n, v in flat.items() if n.endswith("r100")}
    figures["index_recall10"] = 100 * _recall_against_exact(engine, texts[:_RECALL_TEXTS])
    return QualityInfo(
        split=split,
        n_queries=quality.n_queries,
        effort=effort,
        propensity_a=a,
        propensity_b=b,
        metrics={name: round(value, 3) for name, value in figures.items()},
    )


def flatten(quality: Quality) -> dict[str, float]:
    """Figures by name; those of a band carry its name in front (`tail_p1`)."""
    figures: dict[str, float] = {}
    for name, value in quality.as_dict().items():
        if isinstance(value, dict):
            figures |= {
                f"{name}_{part}": float(figure)
                for part, figure in value.items()
                if not part.startswith("n_")
            }
        elif value is not None and name not in ("n_queries", "a", "b"):
            figures[name] = float(value)
    return figures


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
    """Label rows (n, 100) of every text, padded with -1; blank texts answer like any other."""
    if filtered is None or not len(filtered):
        return _ask(engine, [Query(text, k, effort) for text in texts])
    deep = k + spare(filtered)
    ranked = _ask(engine, [Query(text, deep, effort) for text in texts])
    ranked = np.asarray(remove_filtered(ranked, filtered), np.int64)
    ranked[:, k:] = -1
    return ranked[:, :_DEEP]


def _rank_items(
    engine: Engine, texts: Sequence[str], item_ids: Sequence[str], k: int, effort: str
) -> NDArray[np.int64]:
    """The same by the bundle's item filter, each text being of the item beside it."""
    pairs = zip(texts, item_ids, strict=True)
    return _ask(engine, [Query(text, k, effort, item_id) for text, item_id in pairs])


def _ask(engine: Engine, queries: Sequence[Query]) -> NDArray[np.int64]:
    """Label rows of every answer, padded with -1 to the widest or to 100."""
    deepest = max((query.k for query in queries), default=0)
    ranked = np.full((len(queries), max(_DEEP, deepest)), -1, np.int64)
    # Texts of like length together: a batch is padded to its longest.
    order = sorted(range(len(queries)), key=lambda row: len(queries[row].text))
    starts = range(0, len(queries), _QUERIES_AT_ONCE)
    for start in track(starts, len(starts), f"evaluating at k={deepest}"):
        rows = order[start : start + _QUERIES_AT_ONCE]
        answers = engine.predict([queries[row] for row in rows]).predictions
        for row, answer in zip(rows, answers, strict=True):
            ranked[row, : len(answer.rows)] = answer.rows
    return ranked


def _recall_against_exact(engine: Engine, texts: Sequence[str]) -> float:
    """Mean share of the exact top 10 that the default effort finds."""
    effort = engine.manifest.defaults.effort
    found = _rank(engine, texts, _AS_USERS_ASK, effort)[:, :_AS_USERS_ASK]
    exact = _rank(engine, texts, _AS_USERS_ASK, EXACT)[:, :_AS_USERS_ASK]
    return float((found[:, :, None] == exact[:, None, :]).any(axis=1).mean())
