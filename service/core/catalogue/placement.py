"""How the score of an added label compares with those that training gave the others.

An added label has no trained vector: it gets the embedding of its own text, scaled so that the
label scores, when its text is the query, BOOST times what trained labels score with theirs (the
median of a sample). Measured beside other scalings in docs/decisions/0017. Where a bundle's raw
scores are probabilities, inner products are mapped to them, monotone.
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
SAMPLE: Final = 128
_DEPTH: Final = 100
_RANK: Final = 10
_MARGIN: Final = 1e-4

Embed = Callable[[Sequence[str]], Float32Rows]


@dataclass(frozen=True, slots=True)
class Placement:
    """A label's vector is `scale` times its text's embedding; None leaves inner products alone."""

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
    """Measure it on at most SAMPLE labels, the same ones in every process.

    `metric` is the label index's; `scale` is that of an earlier fold, which is then kept.
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
    return Placement(1.0, _fitted(index, labels, embed, effort, share))


def logistic(slope: float, bias: float, share: float = 1.0) -> ToScore:
    """From inner products to `share * sigmoid(slope * product + bias)`."""

    def to_score(products: Float32Rows) -> Float32Rows:
        logits = slope * products.astype(np.float64) + bias
        return (share * np.exp(-np.logaddexp(0.0, -logits))).astype(np.float32)

    return to_score


def sample_rows(n_labels: int) -> NDArray[np.int64]:
    """The rows that are measured, rising."""
    picked = np.random.default_rng(0).choice(n_labels, min(SAMPLE, n_labels), replace=False)
    return np.sort(picked).astype(np.int64)


def _scale(index: LabelIndex, labels: LabelStore, embed: Embed, effort: str) -> float:
    rows = sample_rows(len(labels))
    texts = embed([labels[int(row)].text for row in rows])
    own = float(np.median(_own_scores(index, rows, texts, effort)))
    lengths = float(np.median(np.einsum("nd,nd->n", texts, texts)))
    # Where trained labels do not even score their own texts above zero there is nothing to match.
    return BOOST * max(own, lengths * 1e-3) / lengths


def _own_scores(
    index: LabelIndex, rows: NDArray[np.int64], texts: Float32Rows, effort: str
) -> NDArray[np.floating]:
    """What each sampled label scores with its own text (n,)."""
    if isinstance(index, FaissIndex):
        return np.asarray(np.einsum("nd,nd->n", index.vectors(rows), texts))
    hits = index.search(texts, _DEPTH, effort)
    own = np.where(hits.rows == rows[:, None], hits.scores, -np.inf).max(axis=1)
    # Of one that is not found it is known that the last one has no less.
    return np.asarray(np.maximum(own, hits.scores[:, -1]))


def _fitted(
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
    slope = float(rise / run) if run > _MARGIN and rise > 0 else 1.0  # never falls
    return logistic(slope, float(logits[0] - slope * products[0]), share)
