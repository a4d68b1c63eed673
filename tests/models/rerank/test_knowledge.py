"""What training data say about labels, and that the service reads what was written."""

from dataclasses import fields

import numpy as np
import pytest
from scipy.sparse import csr_array

from models.rerank.knowledge import (
    MOST_TOKENS,
    PARTNERS,
    count_knowledge,
    move_knowledge,
    write_knowledge,
)
from service.core.rerank.features import Batch, feature_matrix
from service.core.rerank.knowledge import KNOWLEDGE_FILES, open_knowledge
from service.errors import BundleMismatch

LABELS = csr_array([[1, 1, 0], [1, 1, 0], [1, 0, 1], [1, 0, 0]])
TOKENS = [[0, 3, 3], [0, 3, 4], [0]]


def test_counts_partners_and_rarities() -> None:
    knowledge = count_knowledge(LABELS, TOKENS, n_tokens=6)
    np.testing.assert_allclose(np.expm1(knowledge.frequencies), [4, 2, 1], rtol=1e-6)
    assert knowledge.partners[:, :3].tolist() == [[1, 2, -1], [0, -1, -1], [0, -1, -1]]
    assert knowledge.partner_shares[:, :2].tolist() == [[0.5, 0.25], [1, 0], [1, 0]]
    assert knowledge.token_weights[0] == knowledge.token_weights[-1] == 0  # special, padding
    assert 0 < knowledge.token_weights[3] < knowledge.token_weights[4] < knowledge.token_weights[5]
    weights = knowledge.token_weights
    assert knowledge.label_weights.tolist() == pytest.approx([weights[3], weights[3:5].sum(), 0])


def test_of_a_long_text_and_many_partners_the_best_are_kept() -> None:
    n_labels = PARTNERS + 4
    often = np.triu(np.ones((n_labels, n_labels), np.int8))  # label i stands in i + 1 points
    tokens = [list(range(MOST_TOKENS + 5))] + [[0, 1, 2]] * (n_labels - 1)
    knowledge = count_knowledge(csr_array(often), tokens, MOST_TOKENS + 5)
    assert knowledge.partners[0].tolist() == list(range(1, PARTNERS + 1))
    assert set(knowledge.tokens[0]) == set(range(3, MOST_TOKENS + 3))


def test_the_service_reads_what_was_written(tmp_path) -> None:
    knowledge = count_knowledge(LABELS, TOKENS, n_tokens=6)
    assert write_knowledge(knowledge, tmp_path) == list(KNOWLEDGE_FILES.values())
    opened = open_knowledge(tmp_path, 3)
    for each in fields(knowledge):
        np.testing.assert_array_equal(getattr(opened, each.name), getattr(knowledge, each.name))


def test_a_fold_moves_rows_and_knows_nothing_of_added_labels(tmp_path) -> None:
    knowledge = count_knowledge(LABELS, TOKENS, n_tokens=6)
    moved = move_knowledge(knowledge, np.array([0, -1, 1]), 3)  # the second of three is removed
    write_knowledge(moved, tmp_path)
    opened = open_knowledge(tmp_path, 3)
    assert np.expm1(opened.frequencies).tolist() == pytest.approx([4, 1, np.nan], nan_ok=True)
    assert opened.partners[:, :2].tolist() == [[-1, 1], [0, -1], [-1, -1]]
    assert opened.partner_shares[:, :2].tolist() == [[0, 0.25], [1, 0], [0, 0]]
    assert opened.tokens[:, 0].tolist() == [knowledge.tokens[0, 0], 0, 6]
    rows = np.array([[2, 1]])
    batch = Batch(rows, np.float32([[1, 0]]), opened, None, None)
    assert np.isnan(feature_matrix(["frequency", "label_length"], batch)).tolist() == [
        [True, True],
        [False, False],
    ]


@pytest.mark.parametrize(
    ("field", "array", "message"),
    [
        ("frequencies", np.zeros(2, np.float32), "describes 2 labels, the index has 3"),
        ("frequencies", np.float32([0, np.inf, 0]), "holds infinite values"),
        ("partner_shares", np.full((3, PARTNERS), np.nan, np.float32), "NaN or an infinite"),
        ("partners", np.full((3, PARTNERS), 3, np.int32), "holds 3 to 3, expected -1 to 2"),
        ("partners", np.full((3, 2), -1, np.int32), "differ in shape"),
        ("tokens", np.full((3, 2), 7, np.int32), "holds 7 to 7, expected 0 to 6"),
        ("token_weights", np.zeros((3, 2), np.float32), "expected a list of float32"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, field, array, message) -> None:
    write_knowledge(count_knowledge(LABELS, TOKENS, n_tokens=6), tmp_path)
    np.save(tmp_path / KNOWLEDGE_FILES[field], array)
    with pytest.raises(BundleMismatch, match=message):
        open_knowledge(tmp_path, 3)
