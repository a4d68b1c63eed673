"""Exact ranking of labels by inner product, a few hundred queries at a time."""

import numpy as np
import torch
from numpy.typing import NDArray

from models.quality.metrics import remove_filtered

_QUERIES_AT_ONCE = 512


@torch.no_grad()
def top_products(
    embeddings: NDArray[np.float32], vectors: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Top k rows of `vectors` (m, dim) for each embedding (n, dim), and the products, (n, k)."""
    queries, weight = torch.from_numpy(embeddings), torch.from_numpy(vectors)
    found = [
        (queries[start : start + _QUERIES_AT_ONCE] @ weight.T).topk(min(k, len(weight)))
        for start in range(0, len(queries), _QUERIES_AT_ONCE)
    ]
    rows = torch.cat([part.indices for part in found]).numpy()
    return rows, torch.cat([part.values for part in found]).numpy()


def exact_ranking(
    embeddings: NDArray[np.float32],
    vectors: NDArray[np.float32],
    filtered: NDArray[np.int64] | None,
    k: int,
) -> NDArray[np.int64]:
    """Top k labels (n, k) by inner product; the `filtered` (query, label) pairs are left out."""
    ranked, _ = top_products(embeddings, vectors, k + spare(filtered))
    return without(ranked, filtered, k)


def spare(filtered: NDArray[np.int64] | None) -> int:
    """How many labels more must be ranked so that enough are left of every query."""
    return int(np.bincount(filtered[:, 0]).max()) if filtered is not None and len(filtered) else 0


def without(
    ranked: NDArray[np.int64], filtered: NDArray[np.int64] | None, k: int
) -> NDArray[np.int64]:
    """The first k of each ranking (n, k or more) that the `filtered` pairs leave."""
    if filtered is not None and len(filtered):
        ranked = np.asarray(remove_filtered(ranked, filtered), np.int64)
    return ranked[:, :k]
