"""Trees that learn to rank candidates: LambdaMART (Burges, 2010), by LightGBM.

A share of the training queries is blanked as requests are: without a text (a query by vector), and
a share of the candidates as labels that were added to the catalogue. So the trees learn where a
missing value goes.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.config import RerankConfig
from models.extras import need
from models.rerank.examples import Examples, columns_that_need

_TRUNCATION: Final = 8
"""`lambdarank_truncation_level`: pairs count if one of them is among the first eight. LightGBM
advises a little more than the k that matters, here 5."""
_LEAST_ROWS: Final = 50
"""Candidates of a leaf at least. A choice: the prototype's."""
_TEXTLESS: Final = 0.05
"""Share of the queries that lose their text. A choice, as the next."""
_ADDED: Final = 0.02
"""Share of the candidates that look like added labels: enough for leaves of their own."""
_INSTALL: Final = "pip install 'astrolabe[train]'"


def grow(examples: Examples, names: Sequence[str], config: RerankConfig, seed: int) -> Any:
    """A LightGBM booster that scores candidates by the features `names`, the best highest.

    The same examples and seed give the same trees. Raises PeerMissing without LightGBM.
    """
    lightgbm = need("lightgbm", _INSTALL)
    kept = examples.allowed
    features = blanked(examples.features, names, np.random.default_rng(seed))
    data = lightgbm.Dataset(
        features[kept], examples.right[kept].astype(np.float32), group=kept.sum(axis=1)
    )
    settings = {
        "objective": "lambdarank",
        "lambdarank_truncation_level": _TRUNCATION,
        "num_leaves": config.leaves,
        "learning_rate": config.rate,
        "min_data_in_leaf": _LEAST_ROWS,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,  # sums in another order could split otherwise
        "verbose": -1,
    }
    return lightgbm.train(settings, data, config.trees)


def score(booster: Any, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """The trees' scores (n, depth) of candidates with `features` (n, depth, n_features)."""
    n, depth, width = features.shape
    scores = booster.predict(features.reshape(n * depth, width), num_threads=1)
    return np.asarray(scores, np.float32).reshape(n, depth)


def blanked(
    features: NDArray[np.float32], names: Sequence[str], rng: np.random.Generator
) -> NDArray[np.float32]:
    """A copy of `features` (n, depth, n_features) in which a share of the values is not known."""
    copy = features.copy()
    no_text = np.flatnonzero(rng.random(len(copy)) < _TEXTLESS)
    copy[np.ix_(no_text, np.arange(copy.shape[1]), columns_that_need(names, "text"))] = np.nan
    is_added = rng.random(copy.shape[:2]) < _ADDED
    queries, places = np.nonzero(is_added)
    copy[queries[:, None], places[:, None], columns_that_need(names, "labels")] = np.nan
    return copy
