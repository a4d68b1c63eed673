"""Clusters: of one size, of neighbours, the same for the same seed."""

import numpy as np
import pytest

from models.training.clusters import clustered_order


def blobs(n_blobs, per_blob, seed=3):
    """Shuffled points round far-apart centres, and the number of each point's blob."""
    generator = np.random.default_rng(seed)
    blob = generator.permutation(np.repeat(np.arange(n_blobs), per_blob))
    noise = 0.1 * generator.standard_normal((len(blob), n_blobs))
    return np.asarray(np.eye(n_blobs)[blob] + noise, np.float32), blob


@pytest.mark.parametrize(
    ("n", "size"), [(0, 4), (1, 4), (4, 4), (37, 4), (64, 8), (50, 1), (9, 50)]
)
def test_the_order_is_a_permutation(n, size):
    vectors = np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32)
    assert sorted(clustered_order(vectors, size, np.random.default_rng(1))) == list(range(n))


def test_each_cluster_holds_one_blob():
    vectors, blob = blobs(n_blobs=8, per_blob=16)
    order = clustered_order(vectors, 16, np.random.default_rng(1))
    assert all(len(set(cluster)) == 1 for cluster in blob[order].reshape(8, 16))


def test_only_the_last_cluster_is_short():
    """Nine blobs of four and two points of a tenth: the rest of 38 points by 4 is 2."""
    vectors, blob = blobs(n_blobs=10, per_blob=4)
    keep = np.flatnonzero(blob != 9).tolist() + np.flatnonzero(blob == 9)[:2].tolist()
    order = clustered_order(vectors[keep], 4, np.random.default_rng(1))
    alike = [len(set(blob[keep][order[start : start + 4]])) for start in range(0, 38, 4)]
    assert len(alike) == 10
    assert sum(alike) <= 12  # a short cluster in the middle would shift all that follow


def test_equal_points_are_split_all_the_same():
    order = clustered_order(np.ones((10, 4), np.float32), 2, np.random.default_rng(1))
    assert sorted(order) == list(range(10))


def test_same_seed_same_order():
    vectors, _ = blobs(n_blobs=4, per_blob=20)
    one, other = (clustered_order(vectors, 8, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(one, other)


def test_vectors_are_left_untouched():
    vectors, _ = blobs(n_blobs=4, per_blob=4)
    before = vectors.copy()
    clustered_order(vectors, 4, np.random.default_rng(1))
    assert np.array_equal(vectors, before)
