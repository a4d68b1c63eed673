"""Paths over clusters to labels, against the slow and obvious way."""

import numpy as np
import pytest
import torch

from models.training.path_scores import all_paths, cluster_scores, edge_weights, shortlist

N_LABELS = 40


def graph(seed, n_clusters=6, width=12, missing=0):
    """Edges without doubles in a cluster, the last `missing` of each left empty; weights."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.stack(
        [torch.randperm(N_LABELS, generator=generator)[:width] for _ in range(n_clusters)]
    )
    if missing:
        edges[:, -missing:] = N_LABELS
    weights = torch.rand(edges.shape, generator=generator) * (edges < N_LABELS)
    scores = torch.rand(5, n_clusters, generator=generator)
    return edges, weights, scores


def paths_of(query, clusters, edges, weights, scores):
    """Best path of each label that a query reaches over some clusters."""
    best = {}
    for cluster in clusters:
        for label, weight in zip(edges[cluster].tolist(), weights[cluster].tolist(), strict=True):
            if label < N_LABELS and weight > 0:
                path = float(scores[query, cluster]) * weight
                best[label] = max(best.get(label, 0.0), path)
    return best


@pytest.mark.parametrize("seed", range(5))
def test_of_several_paths_to_a_label_the_best_counts(seed):
    edges, weights, scores = graph(seed, missing=seed)
    chosen = scores.topk(4).indices
    found = shortlist(scores, chosen, edges, weights, N_LABELS, 1000)
    paths = found.path_scores(scores, weights)
    for query in range(len(scores)):
        expected = paths_of(query, chosen[query].tolist(), edges, weights, scores)
        reached = found.reached[query]
        labels = found.labels[query][reached].tolist()
        assert len(set(labels)) == len(labels)
        assert dict(zip(labels, paths[query][reached].tolist(), strict=True)) == pytest.approx(
            expected
        )


def test_equal_paths_to_a_label_list_it_once():
    edges, weights, scores = graph(3)
    found = shortlist(
        torch.ones_like(scores),
        scores.topk(6).indices,
        edges,
        torch.ones_like(weights),
        N_LABELS,
        1000,
    )
    for query in range(len(scores)):
        labels = found.labels[query][found.reached[query]]
        assert sorted(labels.tolist()) == sorted(set(edges.flatten().tolist()))


@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_shortlist_has_the_best_paths(size):
    edges, weights, scores = graph(7)
    chosen = scores.topk(3).indices
    found = shortlist(scores, chosen, edges, weights, N_LABELS, size)
    paths = found.path_scores(scores, weights)
    for query in range(len(scores)):
        every = paths_of(query, chosen[query].tolist(), edges, weights, scores)
        assert sorted(paths[query].tolist()) == pytest.approx(sorted(every.values())[-size:])


def test_padding_never_enters_the_shortlist():
    edges, weights, scores = graph(1, width=5, missing=3)
    found = shortlist(scores, scores.topk(2).indices, edges, weights + 9.0, N_LABELS, 10)
    assert (found.labels < N_LABELS).all()
    assert (found.reached.sum(dim=1) <= 4).all()
    assert (found.path_scores(scores, weights)[~found.reached] == 0).all()


def test_queries_in_many_chunks_give_the_same(monkeypatch):
    edges, weights, scores = graph(2)
    chosen = scores.topk(3).indices
    whole = shortlist(scores, chosen, edges, weights, N_LABELS, 9)
    monkeypatch.setattr("models.training.path_scores._CELLS_AT_ONCE", 50)
    parts = shortlist(scores, chosen, edges, weights, N_LABELS, 9)
    assert torch.equal(whole.labels, parts.labels)
    assert torch.equal(whole.clusters, parts.clusters)


def test_all_paths_are_the_shortlist_of_everything():
    edges, weights, scores = graph(4, missing=2)
    every = all_paths(scores, edges, weights, N_LABELS)
    for query in range(len(scores)):
        expected = paths_of(query, range(len(edges)), edges, weights, scores)
        assert {row: every[query, row].item() for row in expected} == pytest.approx(expected)
        assert np.count_nonzero(every[query].numpy()) == len(expected)


def test_gradient_reaches_theta_only_in_the_clusters_that_are_used():
    edges, _, scores = graph(5)
    theta = torch.rand(edges.shape, requires_grad=True)
    weights = edge_weights(theta, edges, N_LABELS, beta=3.0)
    found = shortlist(scores, scores.topk(1).indices, edges, weights, N_LABELS, 4)
    found.path_scores(scores, weights).sum().backward()
    used = set(found.clusters[found.reached].tolist())
    assert 0 < len(used) < len(edges)
    assert {row for row in range(len(edges)) if theta.grad[row].any()} == used


def test_scores_and_weights_stop_at_one_and_empty_edges_weigh_nothing():
    assert cluster_scores(torch.tensor([[9.0, 0.0, 0.0]]), 10.0)[0, 0] == 1.0
    edges = torch.tensor([[3, 1, N_LABELS], [N_LABELS] * 3])
    weights = edge_weights(torch.zeros(2, 3), edges, N_LABELS, beta=1.5)
    assert weights.tolist() == [[0.75, 0.75, 0.0], [0.0, 0.0, 0.0]]
