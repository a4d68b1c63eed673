"""The blend of labels and a memory, one label at a time and plain to read."""

import math

import numpy as np

from service.core.index.augmented import Blend
from service.core.index.memory_labels import MemoryLabels
from service.core.types import Hits


def plain_blend(
    found: Hits, recalled: Hits, memory: MemoryLabels, settings: Blend, k: int
) -> list[list[tuple[int, float]]]:
    """Rows and scores that `AugmentedIndex` should answer with, best first, for each query.

    `found` are the hits among labels, `recalled` those among remembered queries.
    """
    answers = []
    for label_rows, logits, neighbours, cosines in zip(
        found.rows.tolist(),
        found.scores.tolist(),
        recalled.rows.tolist(),
        recalled.scores.tolist(),
        strict=True,
    ):
        scores: dict[int, float] = {}
        for row, logit in zip(label_rows, logits, strict=True):
            probability = 1 / (1 + math.exp(-(logit + settings.logit_bias)))
            scores[row] = (1 - settings.weight) * probability
        total = sum(math.exp(cosine / settings.temperature) for cosine in cosines)
        for neighbour, cosine in zip(neighbours, cosines, strict=True):
            share = math.exp(cosine / settings.temperature) / total
            for place in range(memory.offsets[neighbour], memory.offsets[neighbour + 1]):
                row, value = int(memory.labels[place]), float(memory.values[place])
                scores[row] = scores.get(row, 0.0) + settings.weight * share * value
        answers.append(sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k])
    return answers


def assert_same_hits(hits: Hits, expected: list[list[tuple[int, float]]]) -> None:
    """Fail unless these are the rows, in this order, and nearly the scores."""
    assert hits.rows.tolist() == [[row for row, _ in answer] for answer in expected]
    scores = [[score for _, score in answer] for answer in expected]
    np.testing.assert_allclose(hits.scores, scores, rtol=1e-6)
