"""Candidates with what is known about them: what trees learn from, and what they are judged on.

A `Scorer` is a model with the memory and the knowledge of the points that it was trained on. It
describes queries that it was not trained on, so their candidates look as those of a request will.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.data.filters import filtered_pairs
from models.data.tokens import TokenizedTexts
from models.index.efforts import exact_index
from models.index.memory import Memory
from models.quality.groups import Groups
from models.quality.metrics import relevant
from models.quality.ranking import EvaluationSet, top_products
from service.bundle.manifest import EXACT
from service.core.rerank.features import (
    FEATURES,
    NEIGHBOURS,
    Batch,
    Neighbours,
    Source,
    Tokens,
    feature_matrix,
)
from service.core.rerank.knowledge import Knowledge

_QUERIES_AT_ONCE: Final = 512
"""Bounds the memory of the features' intermediate arrays. A choice."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Candidates of n queries, `depth` of each, best first: `rows`, `logits` (n, depth).

    `features` are (n, depth, n_features). `right` says which candidates are relevant, `allowed`
    which are no filter pair of their query. `groups` (n,) are the queries' series.
    """

    rows: NDArray[np.int64]
    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    right: NDArray[np.bool_]
    allowed: NDArray[np.bool_]
    groups: Groups

    def take(self, queries: NDArray[np.integer] | NDArray[np.bool_]) -> "Examples":
        """The examples of these queries."""
        return Examples(
            rows=self.rows[queries],
            logits=self.logits[queries],
            features=self.features[queries],
            right=self.right[queries],
            allowed=self.allowed[queries],
            groups=self.groups[queries],
        )


@dataclass(frozen=True, slots=True)
class Scorer:
    """Label `vectors` (n_labels, dim), and what the features read.

    `temperature` is that of the memory's masses.
    """

    vectors: NDArray[np.float32]
    knowledge: Knowledge
    memory: Memory | None
    temperature: float

    def describe(
        self,
        names: Sequence[str],
        depth: int,
        queries: EvaluationSet[NDArray[np.float32]],
        texts: TokenizedTexts,
    ) -> Examples:
        """The first `depth` labels of each query (n, dim), with the features `names`.

        `texts` are the queries' tokens.
        """
        rows, logits = top_products(queries.queries, self.vectors, depth)
        index = None if self.memory is None else exact_index(self.memory.vectors)
        parts = []
        for start in range(0, len(rows), _QUERIES_AT_ONCE):
            some = slice(start, start + _QUERIES_AT_ONCE)
            neighbours = None
            if index is not None and self.memory is not None:
                hits = index.search(queries.queries[some], NEIGHBOURS, EXACT)
                neighbours = Neighbours(hits, self.memory.labels, self.temperature)
            tokens = texts.batch(np.arange(len(rows))[some])
            batch = Batch(
                *(rows[some], logits[some], self.knowledge),
                *(Tokens(tokens.ids, tokens.mask), neighbours),
            )
            parts.append(feature_matrix(names, batch))
        truth = queries.truth
        return Examples(
            rows,
            logits,
            np.concatenate(parts).reshape(*rows.shape, len(names)),
            relevant(rows, truth),
            ~relevant(rows, filtered_pairs(queries.filter_pairs, *truth.shape)),
            queries.groups,
        )


def joined(parts: Sequence[Examples]) -> Examples:
    """The examples of several folds in one. Groups of different folds stay apart."""
    groups, end = [], 0
    for part in parts:
        groups.append(part.groups + end)
        end = int(groups[-1].max(initial=end)) + 1
    return Examples(
        rows=np.concatenate([part.rows for part in parts]),
        logits=np.concatenate([part.logits for part in parts]),
        features=np.concatenate([part.features for part in parts]),
        right=np.concatenate([part.right for part in parts]),
        allowed=np.concatenate([part.allowed for part in parts]),
        groups=np.concatenate(groups),
    )


def usable_features(has_memory: bool) -> list[str]:
    """The names of all features, without those of the memory where there is none."""
    return [
        name for name, feature in FEATURES.items() if has_memory or "memory" not in feature.needs
    ]


def columns_that_need(names: Sequence[str], source: Source) -> NDArray[np.intp]:
    """The places among `names` of the features that need this source."""
    return np.flatnonzero([source in FEATURES[name].needs for name in names])
