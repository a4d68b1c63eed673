"""Negative labels for a batch: a uniform pool that its queries share, and hard draws for each.

One dense product scores the pool for the whole batch; it is drawn without replacement. Hard draws
come from each query's nearest labels. FAISS finds these in a snapshot of the label vectors (ASTRA,
arXiv 2409.20156). `balance_weights` joins the two: a label weighs one over its *expected* number of
draws, by pool and hard draws together. The estimate is unbiased even with an old snapshot, because
the weights use the densities of the draws themselves (docs/decisions/0003).
"""

from dataclasses import dataclass

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from models.config import MethodConfig
from models.quality.metrics import relevant
from models.training.losses import Cells

_QUERIES_AT_ONCE = 4096
"""Our choice: bounds the memory of one search, and still fills all threads."""
_EXACT_BELOW = 4096
"""Labels below which an exact scan needs less time than building an index (docs/decisions/0008)."""
_LISTS_VISITED = 48
"""Measured at 100,000 labels, with four candidates re-scored for each result: recall@100 of 1.0
(docs/decisions/0008)."""
_CODE_WIDTH = 4
"""Dimensions that share one 4-bit code (docs/decisions/0008)."""


@dataclass(frozen=True, slots=True)
class HardNegatives:
    """The nearest wrong labels of each training row: `labels` int64 and `density`, (n, pool).

    A row of `density` sums to 1, or to 0 if the row has no wrong label. Missing labels are -1.
    """

    labels: Tensor
    density: Tensor

    def draw(self, rows: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw labels (len(rows), n) with replacement by density; returns them and their densities.

        A row without candidates gets label 0 with density 0, and `weigh` then gives it weight 0.
        """
        density = self.density[rows]
        drawable = torch.where(density.sum(dim=1, keepdim=True) > 0, density, 1.0)
        picks = torch.multinomial(drawable, n, replacement=True, generator=generator)
        return self.labels[rows].gather(1, picks).clamp(min=0), density.gather(1, picks)

    def nearest(self, rows: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """The n nearest labels of each row and their densities; missing ones have density 0."""
        return self.labels[rows, :n].clamp(min=0), self.density[rows, :n]


def uniform_pool(n_labels: int, size: int, generator: np.random.Generator) -> Tensor:
    """`size` different labels in rising order, or all labels if there are fewer."""
    size = min(size, n_labels)
    return torch.from_numpy(np.sort(generator.choice(n_labels, size, replace=False, shuffle=False)))


def density_in_pool(pool: Tensor, labels: Tensor, density: Tensor) -> Tensor:
    """The densities (n, len(pool)) of a sorted pool's labels, from `density` of `labels` (n, m)."""
    spread = density.new_zeros(len(labels), len(pool))
    places, inside = places_in_pool(pool, labels)
    rows = torch.arange(len(labels)).unsqueeze(1).expand_as(labels)
    spread[rows[inside], places[inside]] = density[inside]
    return spread


def places_in_pool(pool: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The column of each label in a sorted pool, and whether the pool holds the label."""
    if not len(pool):
        return torch.zeros_like(labels), torch.zeros_like(labels, dtype=torch.bool)
    places = torch.searchsorted(pool, labels).clamp(max=len(pool) - 1)
    return places, pool[places] == labels


def allowed_in_pool(pool: Tensor, known: Cells, n: int) -> Tensor:
    """A mask (n, len(pool)): which labels of a sorted pool are negatives of each of `n` queries.

    All are but the cells `known`.
    """
    places, inside = places_in_pool(pool, known.labels)
    allowed = torch.ones(n, len(pool), dtype=torch.bool)
    allowed[known.rows[inside], places[inside]] = False
    return allowed


def drawn_in_pool(pool: Tensor, labels: Tensor, drawn: Tensor) -> Tensor:
    """A mask (n, len(pool)): which labels of a sorted pool are among a query's drawn `labels`.

    `labels` and `drawn`, which says where there is a label, are (n, m).
    """
    places, inside = places_in_pool(pool, labels)
    rows = torch.arange(len(labels)).unsqueeze(1).expand_as(labels)
    inside = inside & drawn
    among = torch.zeros(len(labels), len(pool), dtype=torch.bool)
    among[rows[inside], places[inside]] = True
    return among


def balance_weights(density: Tensor, n_hard: Tensor, uniform_rate: float) -> Tensor:
    """Weights (n, m) by the balance heuristic (Veach and Guibas, SIGGRAPH 1995).

    A weight is 1 / (n_hard * density + uniform_rate). `density` (n, m) is of a hard draw, `n_hard`
    (n, 1) the number of a query's hard draws, and `uniform_rate` the chance of a label to be in the
    pool.

    >>> balance_weights(torch.tensor([[0.0, 0.5]]), torch.tensor([[4.0]]), 0.5)
    tensor([[2.0000, 0.4000]])
    """
    return 1.0 / (n_hard * density + uniform_rate)


def weigh(
    config: MethodConfig,
    draws: list[tuple[Tensor, Tensor]],
    n_hard: Tensor,
    pool_size: int,
    n_labels: int,
    n_allowed: Tensor,
) -> list[Tensor]:
    """Weights of draws by `config.weights`; one tensor for each pair (density, allowed) of `draws`.

    `density` is the chance that a hard draw gives the label. `allowed` is 0 if the label is no
    negative of its query, else 1. `n_hard` (n, 1) is the number of a query's hard draws,
    `n_allowed` (n, 1) that of its negatives among all labels. `self-normalised` scales each query's
    balance weights so that their sum is `n_allowed`, which is also their expected sum.
    """
    if config.kind == "mips-s" or config.weights == "unit":
        return [allowed for _, allowed in draws]
    # A label that neither way can draw has an infinite weight, but it is never among the draws.
    weights = [
        balance_weights(density, n_hard, pool_size / n_labels).nan_to_num(posinf=0.0) * allowed
        for density, allowed in draws
    ]
    if config.weights == "capped":
        return [weight.clamp(max=config.weight_cap) for weight in weights]
    if config.weights == "self-normalised":
        total = torch.cat(weights, dim=1).sum(dim=1, keepdim=True)
        return [weight * (n_allowed / total.clamp(min=1e-6)) for weight in weights]
    return weights


def mine(
    label_vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    positives: csr_array,
    pool: int,
    exact: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `pool` nearest labels of each query that are not its positives, and their scores.

    `label_vectors` (n_labels, dim), `queries` (n, dim), `positives` (n, n_labels). Both results are
    (n, pool); scores are inner products. Missing places hold label -1 and score -inf.
    """
    # FAISS has a thread count for each thread, and an earlier search may have set this one's to 1.
    faiss.omp_set_num_threads(torch.get_num_threads())
    # Without the mean the vectors form clearer clusters. All scores of a query change by the same
    # constant, so its ranking stays (docs/decisions/0004).
    mean = label_vectors.mean(axis=0)
    shift = queries @ mean
    index = build_index(label_vectors - mean, exact)
    widest = int(np.diff(positives.indptr).max(initial=0))
    k = min(pool + widest, len(label_vectors))
    labels = np.full((len(queries), pool), -1, np.int64)
    scores = np.full((len(queries), pool), -np.inf, np.float32)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        stop = min(start + _QUERIES_AT_ONCE, len(queries))
        nearest_scores, nearest = index.search(queries[start:stop], k)
        nearest_scores += shift[start:stop, None]
        unusable = relevant(nearest, positives[start:stop]) | (nearest < 0)
        # Stable, so that the usable labels stay in the order of their scores.
        order = np.argsort(unusable, axis=1, kind="stable")[:, :pool]
        usable = ~np.take_along_axis(unusable, order, axis=1)
        width = order.shape[1]
        labels[start:stop, :width] = np.where(usable, np.take_along_axis(nearest, order, 1), -1)
        scores[start:stop, :width] = np.where(
            usable, np.take_along_axis(nearest_scores, order, 1), -np.inf
        )
    return labels, scores


def build_index(vectors: NDArray[np.float32], exact: bool = False) -> faiss.Index:
    """An inner-product index of `vectors` (n_labels, dim): inverted lists of 4-bit codes.

    It scores the best candidates again, exactly. It visits a fixed number of lists, and a list
    grows with the square root of the label count only, up to 4,096 lists. Few labels, or a `dim`
    that 4 does not divide, get an exact scan, and so does `exact`.
    """
    dim = vectors.shape[1]
    if exact or len(vectors) < _EXACT_BELOW or dim % _CODE_WIDTH:
        index = faiss.IndexFlatIP(dim)
        index.add(vectors)
        return index
    n_lists = min(4096, int(np.sqrt(len(vectors)) * 2))
    index = faiss.index_factory(
        dim, f"IVF{n_lists},PQ{dim // _CODE_WIDTH}x4fs,RFlat", faiss.METRIC_INNER_PRODUCT
    )
    index.k_factor = 4
    lists = faiss.extract_index_ivf(index)
    lists.nprobe = _LISTS_VISITED
    # Lists only group the labels, so a rough clustering is enough; it takes a tenth of the time.
    lists.cp.min_points_per_centroid, lists.cp.max_points_per_centroid = 1, 64
    lists.cp.niter = 5
    index.train(vectors)
    index.add(vectors)
    return index


def hard_negatives(labels: Tensor, scores: Tensor, scale: float, bias: float) -> HardNegatives:
    """Densities in proportion to sigmoid(scale * score + bias), from `mine`'s labels and scores.

    That is the size of the gradient of a negative's logit.
    """
    present = labels >= 0
    logits = scores * scale + bias
    gradient = torch.where(present, torch.sigmoid(logits), 0.0)
    total = gradient.sum(dim=1, keepdim=True)
    return HardNegatives(labels, gradient / total.clamp(min=1e-30))
