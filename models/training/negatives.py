"""Negative labels for a batch: a uniform pool shared by all its queries, and hard draws for each.

The pool is drawn without replacement, so one dense product scores it for the whole batch. Hard
draws come from each query's nearest labels, found by FAISS over a snapshot of the label vectors
(ASTRA: A1, A2). `balance_weights` joins the two: a drawn label weighs one over the number of times
it is *expected* to be drawn, by either way. The estimate is then unbiased however old the snapshot
is, because the densities are those that the draws were made with (docs/decisions/0003).
"""

from dataclasses import dataclass

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from models.config import MethodConfig
from models.training.losses import Cells

_QUERIES_AT_ONCE = 4096
_EXACT_BELOW = 4096
_LISTS_VISITED = 48
_CODE_WIDTH = 4
"""Dimensions that share one 4-bit code."""


@dataclass(frozen=True, slots=True)
class HardNegatives:
    """For each training row its nearest wrong labels: `labels` (n, pool) int64 and `density`.

    A density row sums to 1, or to 0 where no wrong label was found; such places hold label -1.
    """

    labels: Tensor
    density: Tensor

    def draw(self, rows: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Labels (len(rows), n) drawn with replacement by density, and their densities.

        Where a row has no candidate, density 0 and label 0 come back: the weight makes it nothing.
        """
        density = self.density[rows]
        drawable = torch.where(density.sum(dim=1, keepdim=True) > 0, density, 1.0)
        picks = torch.multinomial(drawable, n, replacement=True, generator=generator)
        return self.labels[rows].gather(1, picks).clamp(min=0), density.gather(1, picks)

    def nearest(self, rows: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """The n nearest labels of each row instead of draws; density 0 where there are fewer."""
        return self.labels[rows, :n].clamp(min=0), self.density[rows, :n]


def uniform_pool(n_labels: int, size: int, generator: np.random.Generator) -> Tensor:
    """`size` distinct labels in rising order (all of them where there are no more)."""
    size = min(size, n_labels)
    return torch.from_numpy(np.sort(generator.choice(n_labels, size, replace=False, shuffle=False)))


def density_in_pool(pool: Tensor, labels: Tensor, density: Tensor) -> Tensor:
    """Spread `density` of `labels` (n, m) over the columns of a sorted pool: (n, len(pool))."""
    spread = density.new_zeros(len(labels), len(pool))
    places, found = places_in_pool(pool, labels)
    rows = torch.arange(len(labels)).unsqueeze(1).expand_as(labels)
    spread[rows[found], places[found]] = density[found]
    return spread


def places_in_pool(pool: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Column of each label in a sorted pool, and whether it is there at all."""
    if not len(pool):
        return torch.zeros_like(labels), torch.zeros_like(labels, dtype=torch.bool)
    places = torch.searchsorted(pool, labels).clamp(max=len(pool) - 1)
    return places, pool[places] == labels


def allowed_in_pool(pool: Tensor, known: Cells, n: int) -> Tensor:
    """Which labels of a sorted pool are negatives of each of `n` queries: all but `known` ones."""
    places, found = places_in_pool(pool, known.labels)
    allowed = torch.ones(n, len(pool), dtype=torch.bool)
    allowed[known.rows[found], places[found]] = False
    return allowed


def balance_weights(density: Tensor, n_hard: Tensor, uniform_rate: float) -> Tensor:
    """Balance heuristic (Veach, 1995): 1 / (n_hard * density + uniform_rate).

    `density` (n, m); `n_hard` (n, 1) is how many hard draws the query had; `uniform_rate` is the
    chance that a label is in the uniform pool.

    >>> balance_weights(torch.tensor([[0.0, 0.5]]), torch.tensor([[4.0]]), 0.5)
    tensor([[2.0000, 0.4000]])
    """
    return 1.0 / (n_hard * density + uniform_rate)


def weigh(
    config: MethodConfig,
    drawn: list[tuple[Tensor, Tensor]],
    n_hard: Tensor,
    pool_size: int,
    n_labels: int,
) -> list[Tensor]:
    """Weights of drawn labels under `config.weights`; `drawn` are pairs (density, allowed).

    `density` is how likely a hard draw would give the label; `allowed` is 0 where the draw is no
    negative of its query. `self-normalised` rescales each query's balance weights to sum to the
    number of labels, their expectation.
    """
    if config.kind == "mips-s" or config.weights == "unit":
        return [allowed for _, allowed in drawn]
    # What neither way can draw has an infinite weight and is never drawn.
    weights = [
        balance_weights(density, n_hard, pool_size / n_labels).nan_to_num(posinf=0.0) * allowed
        for density, allowed in drawn
    ]
    if config.weights == "capped":
        return [weight.clamp(max=config.weight_cap) for weight in weights]
    if config.weights == "self-normalised":
        total = torch.cat(weights, dim=1).sum(dim=1, keepdim=True)
        return [weight * (n_labels / total.clamp(min=1e-6)) for weight in weights]
    return weights


def mine(
    label_vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    positives: csr_array,
    pool: int,
    exact: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `pool` nearest labels of each query that are not its positives, and inner products.

    Missing places hold label -1 and score -inf.
    """
    # FAISS keeps a thread count for each thread; whoever searched before may have left it at 1.
    faiss.omp_set_num_threads(torch.get_num_threads())
    # Without their common direction the vectors fall into real clusters; a query's ranking stays,
    # its scores move by one constant.
    mean = label_vectors.mean(axis=0)
    shift = queries @ mean
    index = build_index(label_vectors - mean, exact)
    widest = int(np.diff(positives.indptr).max(initial=0))
    k = min(pool + widest, len(label_vectors))
    labels = np.full((len(queries), pool), -1, np.int64)
    scores = np.full((len(queries), pool), -np.inf, np.float32)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        stop = min(start + _QUERIES_AT_ONCE, len(queries))
        found_scores, found = index.search(queries[start:stop], k)
        found_scores += shift[start:stop, None]
        unusable = _is_positive(found, positives[start:stop]) | (found < 0)
        # Stable, so that what stays keeps its order by score.
        order = np.argsort(unusable, axis=1, kind="stable")[:, :pool]
        keep = ~np.take_along_axis(unusable, order, axis=1)
        width = order.shape[1]
        labels[start:stop, :width] = np.where(keep, np.take_along_axis(found, order, 1), -1)
        scores[start:stop, :width] = np.where(
            keep, np.take_along_axis(found_scores, order, 1), -np.inf
        )
    return labels, scores


def build_index(vectors: NDArray[np.float32], exact: bool = False) -> faiss.Index:
    """An inner-product index: inverted lists of 4-bit codes, the best of them scored again exactly.

    A fixed number of lists is visited, whatever the label count, and lists grow with its square
    root only. Few labels, or widths that the codes cannot divide, get an exact scan.
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
    # Lists only group the labels: a rough clustering does, and it costs a tenth.
    lists.cp.min_points_per_centroid, lists.cp.max_points_per_centroid = 1, 64
    lists.cp.niter = 5
    index.train(vectors)
    index.add(vectors)
    return index


def hard_negatives(labels: Tensor, scores: Tensor, scale: float, bias: float) -> HardNegatives:
    """Densities proportional to sigmoid(score): the size of the gradient that a label gives."""
    present = labels >= 0
    logits = scores * scale + bias
    gradient = torch.where(present, torch.sigmoid(logits), 0.0)
    total = gradient.sum(dim=1, keepdim=True)
    return HardNegatives(labels, gradient / total.clamp(min=1e-30))


def _is_positive(found: NDArray[np.int64], positives: csr_array) -> NDArray[np.bool_]:
    n_labels = positives.shape[1]
    rows = np.repeat(np.arange(positives.shape[0]), np.diff(positives.indptr))
    keys = rows * n_labels + positives.indices
    return np.isin(np.arange(len(found))[:, None] * n_labels + found, keys)
