"""Scales the vectors of added labels, so that their scores compare with those of trained labels.

An added label has no trained vector. It gets the embedding of its own text times a scale. With that
scale the label scores, for its own text as the query, BOOST times the median that a sample of
trained labels scores for theirs. docs/decisions/0017 measures other scales. If a bundle's raw
scores are probabilities, a monotone function maps inner products to them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.bundle.manifest import EXACT
from service.core.catalogue.delta import ToScore
from service.core.index.augmented import AugmentedIndex
from service.core.index.faiss_index import FaissIndex
from service.core.index.protocol import LabelIndex
from service.core.labels.labels import LabelStore
from service.core.types import Float32Rows

BOOST: Final = 1.5
"""The highest P@1 at which added labels took no more places than trained ones, measured in
docs/decisions/0017."""
SAMPLE: Final = 128
"""Labels that are measured. A choice: more make the median steadier and opening slower."""
_DEPTH: Final = 100
"""Ranks in which a sampled label is looked for, if its index cannot score it alone. A choice."""
_RANK: Final = 10
"""The second point of the logistic map is the tenth answer. A choice, not measured (0017)."""
_MARGIN: Final = 1e-4
"""Keeps probabilities away from 0 and 1, where the logit is infinite."""

Embed = Callable[[Sequence[str]], Float32Rows]


@dataclass(frozen=True, slots=True)
class Placement:
    """How an added label scores: its vector is `scale` times its text's embedding.

    `to_score` maps its inner products to scores; None keeps the products.
    """

    scale: float
    to_score: ToScore | None = None


def placement_of(
    base: LabelIndex,
    metric: str,
    labels: LabelStore,
    embed: Embed,
    effort: str = EXACT,
    scale: float | None = None,
) -> Placement:
    """Measure the placement on at most SAMPLE labels, the same ones in every process.

    `metric` is that of the label index. `scale` is that of an earlier fold, which then stays; with
    None it is measured.
    """
    memory = base if isinstance(base, AugmentedIndex) else None
    index = memory.labels if memory is not None else base
    share = 1.0 - memory.settings.weight if memory is not None else 1.0
    if metric == "inner_product":
        bias = memory.settings.logit_bias if memory is not None else None
        to_score = None if bias is None else logistic(1.0, bias, share)
        if scale is None:
            scale = _scale(index, labels, embed, effort)
        return Placement(scale, to_score)
    return Placement(1.0, _fit_logistic(index, labels, embed, effort, share))


def logistic(slope: float, bias: float, share: float = 1.0) -> ToScore:
    """The function that maps an inner product to `share * sigmoid(slope * product + bias)`."""

    def to_score(products: Float32Rows) -> Float32Rows:
        logits = slope * products.astype(np.float64) + bias
        return (share * np.exp(-np.logaddexp(0.0, -logits))).astype(np.float32)

    return to_score


def sample_rows(n_labels: int) -> NDArray[np.int64]:
    """The rows of the sample, rising; the same for the same number of labels."""
    sample = np.random.default_rng(0).choice(n_labels, min(SAMPLE, n_labels), replace=False)
    return np.sort(sample).astype(np.int64)


def _scale(index: LabelIndex, labels: LabelStore, embed: Embed, effort: str) -> float:
    rows = sample_rows(len(labels))
    texts = embed([labels[int(row)].text for row in rows])
    own = float(np.median(_own_scores(index, rows, texts, effort)))
    lengths = float(np.median(np.einsum("nd,nd->n", texts, texts)))
    # If trained labels score their own texts at or below zero, use a small positive scale.
    return BOOST * max(own, lengths * 1e-3) / lengths


def _own_scores(
    index: LabelIndex, rows: NDArray[np.int64], texts: Float32Rows, effort: str
) -> NDArray[np.floating]:
    """What each sampled label scores with its own text (n,)."""
    if isinstance(index, FaissIndex):
        return np.asarray(np.einsum("nd,nd->n", index.vectors(rows), texts))
    hits = index.search(texts, _DEPTH, effort)
    own = np.where(hits.rows == rows[:, None], hits.scores, -np.inf).max(axis=1)
    # A label outside the hits scores at most what the last hit scores.
    return np.asarray(np.maximum(own, hits.scores[:, -1]))


def _fit_logistic(
    index: LabelIndex, labels: LabelStore, embed: Embed, effort: str, share: float
) -> ToScore:
    """A logistic map through two points: a label's own text, and the tenth answer to one."""
    rows = sample_rows(len(labels))
    texts = embed([labels[int(row)].text for row in rows])
    hits = index.search(texts, _RANK, effort)
    tenth = embed([labels[int(row)].text for row in hits.rows[:, -1]])
    products = np.array(
        [
            np.median(np.einsum("nd,nd->n", texts, texts)),
            np.median(np.einsum("nd,nd->n", texts, tenth)),
        ]
    )
    own = np.median(_own_scores(index, rows, texts, effort))
    scores = np.clip([own, np.median(hits.scores[:, -1])], _MARGIN, 1 - _MARGIN)
    logits = np.log(scores) - np.log1p(-scores)
    run, rise = products[0] - products[1], logits[0] - logits[1]
    slope = float(rise / run) if run > _MARGIN and rise > 0 else 1.0  # the map must rise
    return logistic(slope, float(logits[0] - slope * products[0]), share)
