"""Pairs to leave out: an item itself and reciprocal pairs, by row and by item id."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from models.data.dataset import Dataset, LabelCatalogue, Points
from models.data.filters import check_item_ids, filtered_pairs, item_pairs, with_own_items
from models.errors import DataError


def points(*uids: str, titles: list[str] | None = None) -> Points:
    empty = csr_array((len(uids), 3), dtype=np.float32)
    return Points(list(uids), titles or [f"the {u}" for u in uids], [""] * len(uids), empty)


def catalogue(*uids: str) -> LabelCatalogue:
    return LabelCatalogue(list(uids), list(uids), [""] * len(uids))


@pytest.fixture
def dataset():
    """Items a, b, c are labels; the points are c, x, a in training and b, y in the test split."""
    return Dataset("d", points("c", "x", "a"), points("b", "y"), catalogue(*"abc"), None, None, "")


def test_pairs_become_one_row_each_with_repeats_once():
    found = filtered_pairs(np.array([[2, 1], [0, 0], [2, 1], [2, 0]]), 3, 2)
    assert found.toarray().tolist() == [[1, 0], [0, 0], [1, 1]]


@pytest.mark.parametrize("pairs", [None, np.zeros((0, 2), np.int64)])
def test_no_pairs_are_an_empty_matrix_of_the_right_shape(pairs):
    found = filtered_pairs(pairs, 4, 5)
    assert (found.shape, found.nnz) == ((4, 5), 0)


def test_pairs_outside_the_matrix_are_refused():
    with pytest.raises(ValueError, match="exceeds"):
        filtered_pairs(np.array([[0, 5]]), 2, 5)


def test_every_point_loses_the_label_of_its_own_uid(dataset):
    filtered = with_own_items(dataset)
    assert filtered.train_filter.tolist() == [[0, 2], [2, 0]]
    assert filtered.test_filter.tolist() == [[0, 1]]


def test_own_items_join_the_pairs_of_the_filter_files(dataset):
    given = replace(dataset, train_filter=np.array([[1, 2], [0, 2]]))
    assert with_own_items(given).train_filter.tolist() == [[0, 2], [1, 2], [2, 0]]


def test_a_point_without_a_uid_has_no_label_of_its_own(dataset):
    unnamed = replace(dataset, train=points("", "x", "a"))
    assert with_own_items(unnamed).train_filter.tolist() == [[2, 0]]


def test_a_data_set_without_test_points_has_no_test_filter(dataset):
    assert with_own_items(replace(dataset, test=None)).test_filter is None


def test_items_are_the_filtered_points_of_both_splits(dataset):
    filters = {"train_filter": np.array([[1, 0], [1, 2]]), "test_filter": np.array([[1, 1]])}
    ids, rows = item_pairs(replace(dataset, **filters), own_item=False)
    assert list(zip(ids, rows.tolist(), strict=True)) == [("x", 0), ("x", 2), ("y", 1)]


def test_with_own_items_every_label_is_an_item_whether_it_is_a_point_or_not(dataset):
    ids, rows = item_pairs(dataset, own_item=True)
    assert list(zip(ids, rows.tolist(), strict=True)) == [("a", 0), ("b", 1), ("c", 2)]


def test_nothing_to_leave_out_is_no_item(dataset):
    ids, rows = item_pairs(dataset, own_item=False)
    assert (ids, rows.tolist()) == ([], [])


def test_a_filtered_uid_that_names_two_points_is_refused(dataset, tmp_path):
    (tmp_path / "trn.jsonl").touch()
    both = replace(
        dataset,
        train=points("0", "1", titles=["whale", "ship"]),
        test=points("0", "1", titles=["rome", "ship"]),
        test_filter=np.array([[1, 0]]),
    )
    check_item_ids(both, tmp_path)
    wanted = rf"""{tmp_path / "trn.jsonl"}, line 1: .*found "0" for 'rome' and for 'whale'"""
    with pytest.raises(DataError, match=wanted):
        check_item_ids(replace(both, test_filter=np.array([[0, 0]])), tmp_path)


def test_copies_of_a_point_share_its_uid_and_points_of_other_content_do_not(dataset):
    twice = replace(dataset, train=points("c", "c", "a"), train_filter=np.array([[0, 1]]))
    check_item_ids(twice, Path("data"))
    train = replace(twice.train, contents=["", "another", ""])
    with pytest.raises(DataError, match=r"""line 2: .*found "c" for '' and for 'another'"""):
        check_item_ids(replace(twice, train=train), Path("data"))


def test_a_filtered_point_needs_a_uid(dataset):
    unnamed = replace(dataset, test=points("b", ""), test_filter=np.array([[1, 1]]))
    with pytest.raises(DataError, match=r"line 2: .*found no"):
        check_item_ids(unnamed, Path("data"))
