"""Scores of the paths from a query over clusters to labels, and the labels that are best reached.

A path's score is the cluster's score for the query times the weight of the edge; of several paths
to one label the best counts (ELIAS). Pure functions of tensors; edges as in
`models.training.label_graph`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_CELLS_AT_ONCE = 1 << 24


def cluster_scores(logits: Tensor, alpha: float) -> Tensor:
    """min(1, alpha * softmax), (n, n_clusters): about `alpha` clusters may be fully on."""
    return (alpha * logits.softmax(dim=1)).clamp(max=1.0)


def edge_weights(theta: Tensor, edges: Tensor, n_labels: int, beta: float) -> Tensor:
    """min(1, beta * softmax over a cluster's edges), (n_clusters, width); 0 where there is none."""
    real = edges < n_labels
    shares = theta.masked_fill(~real, -torch.inf).softmax(dim=1).nan_to_num()
    return (beta * shares).clamp(max=1.0) * real


@dataclass(frozen=True, slots=True)
class Shortlist:
    """The labels (n, size) that are best reached, and the edge of each: its cluster and place.

    Where fewer are reached, `reached` is False and the label is 0.
    """

    labels: Tensor
    clusters: Tensor
    places: Tensor
    reached: Tensor

    def path_scores(self, scores: Tensor, weights: Tensor) -> Tensor:
        """Scores (n, size) of the paths, with gradients to clusters (n, C) and edges (C, width)."""
        flat = (self.clusters * weights.shape[1] + self.places).flatten()
        along = weights.flatten().gather(0, flat).view_as(self.clusters)
        return scores.gather(1, self.clusters) * along * self.reached


@torch.no_grad()
def shortlist(
    scores: Tensor, chosen: Tensor, edges: Tensor, weights: Tensor, n_labels: int, size: int
) -> Shortlist:
    """The `size` labels with the best paths over the `chosen` clusters (n, b) of each query.

    `scores` (n, n_clusters), `edges` and `weights` (n_clusters, width). A path of score 0 reaches
    nothing.
    """
    n_at_once = max(1, _CELLS_AT_ONCE // (n_labels + 1))
    parts = [
        _shortlist(scores[rows], chosen[rows], edges, weights, n_labels, size)
        for rows in torch.arange(len(scores), device=scores.device).split(n_at_once)
    ]
    return Shortlist(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _shortlist(
    scores: Tensor, chosen: Tensor, edges: Tensor, weights: Tensor, n_labels: int, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, width = len(scores), edges.shape[1]
    labels = edges[chosen].view(n, -1)  # (n, b * width)
    paths = (scores.gather(1, chosen).unsqueeze(2) * weights[chosen]).view(n, -1)
    # A float that is not negative is ordered as its bits are. Below them stands what breaks ties:
    # the edge's place among the paths to one label, then the label's row.
    bits = paths.view(torch.int32).long() << 32
    keys = bits | (labels.shape[1] - torch.arange(labels.shape[1], device=labels.device))
    best = keys.new_zeros(n, n_labels + 1).scatter_reduce_(1, labels, keys, "amax")
    wins = (best.gather(1, labels) == keys) & (labels < n_labels) & (paths > 0)
    worth = torch.where(wins, bits | (n_labels - labels), 0)
    top = worth.topk(min(size, worth.shape[1]), dim=1, sorted=False)
    reached = top.values > 0
    found = labels.gather(1, top.indices) * reached
    clusters = chosen.gather(1, top.indices // width)
    return found, clusters, top.indices % width, reached


@torch.no_grad()
def all_paths(scores: Tensor, edges: Tensor, weights: Tensor, n_labels: int) -> Tensor:
    """The best path's score for every query and label, (n, n_labels); 0 where there is none."""
    n = len(scores)
    paths = scores.new_zeros(n, n_labels + 1)
    for cluster in range(len(edges)):  # within one cluster no label stands twice
        labels, along = edges[cluster], scores[:, cluster, None] * weights[cluster]
        paths[:, labels] = torch.maximum(paths[:, labels], along)
    return paths[:, :n_labels]
