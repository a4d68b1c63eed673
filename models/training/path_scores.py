"""Scores of paths from a query over a cluster to a label, and the labels with the best paths.

A path's score is the cluster's score for the query times the weight of the edge. If several paths
lead to a label, the best one counts (ELIAS, arXiv 2210.08410). All are pure functions of tensors;
edges have the form of `models.training.label_graph`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_CELLS_AT_ONCE = 1 << 24
"""Cells (query, label) at a time. A choice: their keys take 128 MB."""


def cluster_scores(logits: Tensor, alpha: float) -> Tensor:
    """Scores min(1, alpha * softmax), (n, n_clusters); up to `alpha` clusters can score 1."""
    return (alpha * logits.softmax(dim=1)).clamp(max=1.0)


def edge_shares(theta: Tensor, edges: Tensor, n_labels: int) -> Tensor:
    """Softmax over a cluster's edges, (n_clusters, width); padding is 0."""
    real = edges < n_labels
    return theta.masked_fill(~real, -torch.inf).softmax(dim=1).nan_to_num() * real


def edge_weights(theta: Tensor, edges: Tensor, n_labels: int, beta: float) -> Tensor:
    """Weights min(1, beta * softmax over a cluster's edges), (n_clusters, width); padding is 0."""
    return (beta * edge_shares(theta, edges, n_labels)).clamp(max=1.0)


@dataclass(frozen=True, slots=True)
class Shortlist:
    """The labels (n, size) with the best paths, and each path's edge: `clusters`, `places`.

    A query with fewer paths has label 0 with `reached` False at the remaining places.
    """

    labels: Tensor
    clusters: Tensor
    places: Tensor
    reached: Tensor

    def path_scores(self, scores: Tensor, weights: Tensor) -> Tensor:
        """Scores (n, size) of the paths, from `scores` (n, C) of clusters, `weights` (C, width).

        Gradients flow to both.
        """
        flat = (self.clusters * weights.shape[1] + self.places).flatten()
        along = weights.flatten().gather(0, flat).view_as(self.clusters)
        return scores.gather(1, self.clusters) * along * self.reached


@torch.no_grad()
def shortlist(
    scores: Tensor, clusters: Tensor, edges: Tensor, weights: Tensor, n_labels: int, size: int
) -> Shortlist:
    """The `size` labels with the best paths over the `clusters` (n, b) of each query.

    `scores` (n, n_clusters), `edges` and `weights` (n_clusters, width). A path of score 0 does not
    count.
    """
    n_at_once = max(1, _CELLS_AT_ONCE // (n_labels + 1))
    parts = [
        _shortlist(scores[rows], clusters[rows], edges, weights, n_labels, size)
        for rows in torch.arange(len(scores), device=scores.device).split(n_at_once)
    ]
    return Shortlist(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _shortlist(
    scores: Tensor, clusters: Tensor, edges: Tensor, weights: Tensor, n_labels: int, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, width = len(scores), edges.shape[1]
    labels = edges[clusters].view(n, -1)  # (n, b * width)
    paths = (scores.gather(1, clusters).unsqueeze(2) * weights[clusters]).view(n, -1)
    # Floats that are not negative have the order of their bits. The lower half of a key breaks
    # ties: between paths to one label by the edge's place, between labels by their row.
    bits = paths.view(torch.int32).long() << 32
    keys = bits | (labels.shape[1] - torch.arange(labels.shape[1], device=labels.device))
    best = keys.new_zeros(n, n_labels + 1).scatter_reduce_(1, labels, keys, "amax")
    wins = (best.gather(1, labels) == keys) & (labels < n_labels) & (paths > 0)
    ranks = torch.where(wins, bits | (n_labels - labels), 0)
    top = ranks.topk(min(size, ranks.shape[1]), dim=1, sorted=False)
    reached = top.values > 0
    listed = labels.gather(1, top.indices) * reached
    edge_clusters = clusters.gather(1, top.indices // width)
    return listed, edge_clusters, top.indices % width, reached


@torch.no_grad()
def all_paths(scores: Tensor, edges: Tensor, weights: Tensor, n_labels: int) -> Tensor:
    """The best path's score for each query and label, (n, n_labels); 0 without a path."""
    n = len(scores)
    paths = scores.new_zeros(n, n_labels + 1)
    for cluster in range(len(edges)):  # no cluster has two edges to a label
        labels, along = edges[cluster], scores[:, cluster, None] * weights[cluster]
        paths[:, labels] = torch.maximum(paths[:, labels], along)
    return paths[:, :n_labels]
