"""Clusters of labels and the edges that most passes along."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from models.training.label_graph import (
    balanced_clusters,
    centres,
    common_edges,
    label_vectors_of,
    usual_clusters,
)


@pytest.mark.parametrize(
    ("n_labels", "expected"), [(5, 2), (200, 2), (201, 4), (12_476, 128), (131_073, 2048)]
)
def test_clusters_are_a_power_of_two_with_at_most_a_hundred_labels(n_labels, expected):
    assert usual_clusters(n_labels) == expected


def test_a_labels_vector_is_the_direction_of_its_points():
    embeddings = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    labels = csr_array(np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32))
    found = label_vectors_of(embeddings, labels)
    assert found == pytest.approx(np.array([[0.5**0.5, 0.5**0.5], [-1, 0], [0, 0]]))


@pytest.mark.parametrize(("n_labels", "n_clusters"), [(12, 4), (13, 4), (7, 7), (50, 3)])
def test_every_label_is_in_one_cluster_of_one_size(n_labels, n_clusters):
    generator = np.random.default_rng(1)
    vectors = generator.standard_normal((n_labels, 3)).astype(np.float32)
    edges = balanced_clusters(vectors, n_clusters, generator)
    members = edges[edges < n_labels]
    assert sorted(members) == list(range(n_labels))
    assert len(edges) <= n_clusters
    assert ((edges < n_labels).sum(axis=1)[:-1] == edges.shape[1]).all()
    assert np.linalg.norm(centres(vectors, edges), axis=1) == pytest.approx(1.0)


def test_edges_are_the_worthiest_and_a_labels_best_one_comes_first():
    labels = csr_array(np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]], np.float32))
    clusters = np.array([[0, 1], [0, 1], [1, 0]])
    scores = np.array([[0.9, 0.2], [0.8, 0.1], [0.5, 0.4]], np.float32)
    edges, worth = common_edges(labels, clusters, scores, n_clusters=2, kappa=3)
    # Cluster 0: label 0 gets 1.7, 1 gets 0.9, 2 gets 0.8, 3 gets 0.4; cluster 1 is best for 3 only.
    assert edges.tolist() == [[0, 1, 2], [3, 0, 1]]
    assert worth == pytest.approx(np.array([[1.7, 0.9, 0.8], [0.5, 0.3, 0.2]]))


def test_a_cluster_with_fewer_labels_than_kappa_is_filled_up():
    labels = csr_array(np.array([[1.0, 0.0]], np.float32))
    edges, worth = common_edges(labels, np.array([[0]]), np.ones((1, 1), np.float32), 2, 2)
    assert edges.tolist() == [[0, 2], [2, 2]]
    assert worth.tolist() == [[1.0, 0.0], [0.0, 0.0]]
