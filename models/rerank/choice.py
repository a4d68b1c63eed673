"""Whether a second stage pays: its gain on validation points that its trees did not learn from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.config import RerankConfig
from models.quality.groups import clustered_error, folds_of
from models.quality.metrics import ndcg_of_each, precision_at_k
from models.quality.ranking import EvaluationSet
from models.rerank.examples import Examples
from models.rerank.trees import grow, score

_TOP: Final = 5
"""The k of the nDCG@k that decides, as for the memory (`models.index.memory.choose`)."""
_FOLDS: Final = 5
"""Parts of the validation points where the trees learn from these alone. A choice: as is usual."""


@dataclass(frozen=True, slots=True)
class RerankChoice:
    """What the second stage gains in nDCG@5, and P@1 and P@5 without and with it, in percent.

    `standard_error` is that of the gain; queries of a group vary together.
    """

    used: bool
    gain: float
    standard_error: float
    p_at_1: tuple[float, float]
    p_at_5: tuple[float, float]


def learn(
    examples: Examples | None,
    validation: Examples,
    names: Sequence[str],
    config: RerankConfig,
    seed: int,
) -> tuple[Any, NDArray[np.float32]]:
    """The booster, and scores (n, depth) of the validation candidates by trees that never saw them.

    Without `examples` the trees learn from the validation points themselves. Each fold of these is
    then scored by trees of the other folds, and the booster is grown on all.
    """
    if examples is not None:
        booster = grow(examples, names, config, seed)
        return booster, score(booster, validation.features)
    fold = folds_of(validation.groups, _FOLDS, np.random.default_rng(seed))
    scores = np.empty(validation.rows.shape, np.float32)
    for number in np.unique(fold):
        held = fold == number
        others = grow(validation.take(~held), names, config, seed)
        scores[held] = score(others, validation.features[held])
    return grow(validation, names, config, seed), scores


def judge(
    before: NDArray[np.int64],
    after: NDArray[np.int64],
    validation: EvaluationSet[Any],
    demanded: bool,
) -> RerankChoice:
    """Compare rankings (n, 5 + spare or more) without and with the second stage.

    It is used if it gains more than two standard errors, because it costs time, or if `demanded`.
    """
    truth, groups = validation.truth, validation.labelled_groups
    ranked = [validation.first(rows, _TOP) for rows in (before, after)]
    old, new = (ndcg_of_each(rows, truth, _TOP) for rows in ranked)
    gain, error = 100 * float((new - old).mean()), 100 * clustered_error(new - old, groups)
    firsts, fives = ([100 * precision_at_k(rows, truth, k) for rows in ranked] for k in (1, _TOP))
    used = demanded or gain > 2 * error
    return RerankChoice(used, gain, error, (firsts[0], firsts[1]), (fives[0], fives[1]))
