"""How far an answer is from the one that a bundle recorded of its golden query."""

import numpy as np

from service.bundle.manifest import Golden
from service.core.types import Prediction


def drift_of(item: Golden, label_ids: set[str], answer: Prediction) -> float:
    """The distance of an answer from the recorded one, in served score.

    It is the larger of two numbers: the largest change of a score at one rank, and the most by
    which a missing label's recorded score exceeds the last recorded one. Labels whose scores are
    close may thus change places, and one may replace another at the end.
    """
    if len(answer.scores) != len(item.scores):
        return float("inf")
    losses = [
        score - item.scores[-1]
        for label_id, score in zip(item.label_ids, item.scores, strict=True)
        if label_id not in label_ids
    ]
    changes = np.abs(answer.scores - np.asarray(item.scores))
    return max(float(changes.max(initial=0.0)), *losses, 0.0)
