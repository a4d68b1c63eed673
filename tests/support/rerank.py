"""Made-up candidates for the training of a second stage."""

import numpy as np

from models.rerank.examples import Examples

NAMES = ["logit", "frequency", "query_share"]


def some_examples(n: int, seed: int, *, tells: bool = True, depth: int = 10) -> Examples:
    """Candidates of n queries, one of each right; if `tells`, that one has a high frequency."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, depth, len(NAMES))).astype(np.float32)
    features[..., 0] = -np.sort(-features[..., 0], axis=1)
    right = np.zeros((n, depth), np.bool_)
    right[np.arange(n), rng.integers(0, depth, n)] = True
    if tells:
        features[..., 1] += 4 * right
    return Examples(
        rows=np.tile(np.arange(depth), (n, 1)),
        logits=features[..., 0],
        features=features,
        right=right,
        allowed=np.ones((n, depth), np.bool_),
        groups=np.arange(n),
    )
