"""Training rows: what is known of them, label rows behind them, cells of a batch."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from models.data.tokens import TokenizedTexts
from models.training.training_rows import TrainingRows, cells_of, cooccurring, with_label_rows


@pytest.fixture
def points():
    texts = TokenizedTexts(np.array([1, 5, 2, 1, 6, 7, 2], np.int32), np.array([0, 3, 7]), 0)
    labels = csr_array(np.array([[1.0, 0, 0.5], [0, 1.0, 0]], np.float32))
    ignored = csr_array(np.array([[1.0, 1.0, 0], [0, 0, 0]], np.float32))
    return TrainingRows(texts, labels, ignored, ["a", "b"])


def test_known_cells_are_positives_and_ignored_ones(points):
    assert (points.known.toarray() > 0).tolist() == [[True, True, True], [False, True, False]]


def test_a_relevant_cell_that_is_ignored_is_no_positive(points):
    assert points.labels.toarray().tolist() == [[0, 0, 0.5], [0, 1.0, 0]]
    assert points.labels.nnz == 2


def test_what_was_given_is_left_untouched():
    labels, ignored = csr_array(np.ones((1, 2), np.float32)), csr_array(np.eye(1, 2, dtype="f"))
    texts = TokenizedTexts(np.array([1], np.int32), np.array([0, 1]), 0)
    assert TrainingRows(texts, labels, ignored, ["a"]).labels.nnz == 1
    assert (labels.nnz, ignored.nnz) == (2, 1)


def test_label_texts_join_the_rows_with_themselves_as_target(points):
    names = TokenizedTexts(np.array([9, 10, 11], np.int32), np.array([0, 1, 2, 3]), 0)
    rows = with_label_rows(points, names)
    assert len(rows) == 5
    assert (rows.labels.toarray()[2:] == np.eye(3)).all()
    assert (rows.ignored.toarray()[:2] == points.ignored.toarray()).all()
    assert rows.ignored.toarray()[2:].sum() == 0
    assert rows.texts.batch(np.array([3])).ids.tolist() == [[10]]
    assert list(rows.uids) == ["a", "b", "label row 0", "label row 1", "label row 2"]


def test_labels_that_come_along_are_soft_targets_of_a_label_row():
    """Twelve points have labels 0 and 1, eight have 1 alone, and one has 2 and 3."""
    labels = np.repeat([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]], [12, 8, 1], axis=0)
    texts = TokenizedTexts(np.ones(21, np.int32), np.arange(22), 0)
    ignored = csr_array((21, 4), dtype=np.float32)
    points = TrainingRows(texts, csr_array(labels, dtype=np.float32), ignored, ["a"] * 21)
    names = TokenizedTexts(np.arange(4, dtype=np.int32), np.arange(5), 0)
    rows = with_label_rows(points, names, cooccurrence=0.5)
    assert rows.labels.toarray()[21:] == pytest.approx(
        np.array(
            [
                [1, 0.5 * 12 / 17, 0, 0],
                [0.5 * 12 / 25, 1, 0, 0],
                [0, 0, 1, 0.5 / 6],
                [0, 0, 0.5 / 6, 1],
            ]
        )
    )
    assert rows.labels.dtype == np.float32
    assert (rows.known.toarray()[21:] > 0).sum() == 8


def test_what_seldom_comes_along_is_no_target():
    """One of twenty points with label 0 has label 1 too: 1 / 25 is below a tenth."""
    labels = csr_array(np.repeat([[1, 1], [1, 0]], [1, 19], axis=0))
    assert cooccurring(labels).toarray() == pytest.approx(np.array([[0, 0], [1 / 6, 0]]))


def test_cells_come_with_their_place_in_the_batch(points):
    cells = cells_of(points.labels, np.array([1, 0, 1]))
    assert cells.rows.tolist() == [0, 1, 2]
    assert cells.labels.tolist() == [1, 2, 1]
    assert cells.values.tolist() == [1.0, 0.5, 1.0]
