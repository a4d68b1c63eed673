"""models.data.synthetic: seeded, covering, Zipf-like, and learnable by counting words."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from models.data.dataset import report
from models.data.synthetic import MAX_LABELS_PER_POINT, synthetic_dataset
from models.quality.metrics import precision_at_k


def test_the_same_seed_gives_the_same_data_and_another_does_not():
    first, again, other = (synthetic_dataset(50, 200, 20, seed) for seed in (1, 1, 2))
    assert first.train.titles == again.train.titles
    assert (first.train.labels != again.train.labels).nnz == 0
    assert first.sha256 == again.sha256
    assert first.sha256 != other.sha256


def test_sizes_are_those_asked_for_and_no_test_part_is_none():
    dataset = synthetic_dataset(30, 100, 10, seed=0)
    assert (len(dataset.labels), len(dataset.train), len(dataset.test)) == (30, 100, 10)
    assert dataset.train.labels.shape == (100, 30)
    assert dataset.train.labels.dtype == np.float32
    assert synthetic_dataset(30, 100, 0, seed=0).test is None


def test_every_label_has_a_point_a_text_and_an_id_of_its_own():
    found = report(synthetic_dataset(500, 500, 0, seed=0), "title")
    assert found.labels_without_points == 0
    assert found.labels_without_text == 0
    assert found.duplicate_label_texts == 0
    assert found.duplicate_label_uids == 0


def test_every_point_has_one_to_five_labels_and_a_text():
    found = report(synthetic_dataset(200, 2000, 100, seed=0), "title").train
    assert found.labels_per_point_min >= 1
    assert 2 <= found.labels_per_point_max <= MAX_LABELS_PER_POINT
    assert found.points_without_text == 0


def test_frequencies_have_a_head_and_a_tail():
    dataset = synthetic_dataset(1000, 5000, 0, seed=0)
    counts = np.sort(np.bincount(dataset.train.labels.indices, minlength=1000))[::-1]
    assert counts[:10].sum() > 0.2 * counts.sum()
    assert np.median(counts) < counts.mean() / 2


def test_fewer_points_than_labels_and_a_single_label_are_legal():
    assert synthetic_dataset(100, 10, 0, seed=0).train.labels.shape == (10, 100)
    assert synthetic_dataset(1, 3, 1, seed=0).train.labels.toarray().tolist() == [[1], [1], [1]]


def test_counting_shared_words_already_ranks_well():
    dataset = synthetic_dataset(300, 10, 500, seed=3)
    words = sorted(set(" ".join(dataset.labels.titles).split()))
    vocabulary = {word: column for column, word in enumerate(words)}

    def bag(texts):
        pairs = [
            (r, vocabulary[w]) for r, t in enumerate(texts) for w in t.split() if w in vocabulary
        ]
        rows, columns = np.array(pairs).T
        shape = (len(texts), len(vocabulary))
        return csr_array((np.ones(len(pairs)), (rows, columns)), shape=shape)

    scores = (bag(dataset.test.titles) @ bag(dataset.labels.titles).T).toarray()
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    assert precision_at_k(ranked, dataset.test.labels, k=1) > 0.95


@pytest.mark.parametrize("sizes", [(0, 5, 5), (5, 0, 5), (5, 5, -1)])
def test_empty_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="at least one"):
        synthetic_dataset(*sizes, seed=0)
