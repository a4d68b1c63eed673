"""models.data.dataset: the values, the joining of text, and what the report counts."""

import json

import numpy as np
import pytest
from scipy.sparse import csr_array

from models.data.dataset import (
    Dataset,
    LabelCatalogue,
    Points,
    label_texts,
    point_texts,
    report,
    report_text,
)


def make_points(titles, contents=None, labels=None, n_labels=3, uids=None):
    rows = labels if labels is not None else [[0]] * len(titles)
    dense = np.zeros((len(titles), n_labels), dtype=np.float32)
    for row, columns in enumerate(rows):
        dense[row, columns] = 1.0
    return Points(
        uids=uids or [f"p{row}" for row in range(len(titles))],
        titles=titles,
        contents=contents or [""] * len(titles),
        labels=csr_array(dense),
    )


def make_dataset(train, test=None, labels=None):
    labels = labels or LabelCatalogue(["a", "b", "c"], ["A", "B", "C"], ["", "", ""])
    return Dataset("d", train, test, labels, None, None, "0" * 64)


def test_title_alone_leaves_content_out():
    points = make_points(["t", ""], ["c", "d"])
    assert point_texts(points, "title") == ["t", ""]


def test_title_and_content_join_with_a_blank_only_when_both_are_there():
    points = make_points(["t", "t", "", ""], ["c", "", "c", ""])
    assert point_texts(points, "title+content") == ["t c", "t", "c", ""]


def test_views_stay_apart_in_one_text():
    points = make_points(["t", "t", "", "a\x1fb"], ["c", "", "c", "d"])
    assert point_texts(points, "title|content") == ["t\x1fc", "t", "\x1fc", "a b\x1fd"]


def test_label_texts_join_the_same_way():
    labels = LabelCatalogue(["1", "2"], ["a", "b"], ["x", ""])
    assert label_texts(labels, "title+content") == ["a x", "b"]


def test_texts_are_a_copy_that_may_be_changed():
    points = make_points(["t"])
    point_texts(points, "title").append("more")
    assert points.titles == ["t"]


def test_unknown_fields_say_which_exist():
    with pytest.raises(ValueError, match=r'use "title", "title\+content" or "title'):
        point_texts(make_points(["t"]), "content")


def test_take_gives_the_rows_asked_for_in_their_order():
    taken = make_points(["x", "y", "z"], labels=[[0], [1], [2]]).take([2, 0])
    assert (taken.uids, taken.titles) == (["p2", "p0"], ["z", "x"])
    assert taken.labels.toarray().tolist() == [[0, 0, 1], [1, 0, 0]]
    assert taken.labels.dtype == np.float32


def test_take_of_no_rows_is_no_points():
    taken = make_points(["x"]).take([])
    assert len(taken) == 0
    assert taken.labels.shape == (0, 3)


def test_lengths_that_disagree_are_refused():
    with pytest.raises(ValueError, match="2 uids, 1 titles and 2 contents"):
        LabelCatalogue(["1", "2"], ["a"], ["", ""])
    with pytest.raises(ValueError, match="labels has 1 rows for 2 points"):
        Points(["1", "2"], ["", ""], ["", ""], csr_array((1, 3)))


def test_points_over_other_labels_than_the_catalogue_are_refused():
    train = make_points(["x"], n_labels=3)
    with pytest.raises(ValueError, match="test points have 4 label columns"):
        make_dataset(train, test=make_points(["y"], n_labels=4))


def test_report_counts_gaps_and_duplicates():
    train = make_points(
        ["x", "x", " ", "y", "x"],
        labels=[[0, 1], [0], [], [0], [0]],
        uids=["1", "1", "2", "3", "4"],
    )
    labels = LabelCatalogue(["a", "b", "b"], ["A", "", "A"], ["", "", ""])
    test = make_points(["y", "new", ""])
    found = report(make_dataset(train, test, labels), "title")
    assert found["train"]["n_points"] == 5
    assert found["train"]["labels_per_point_mean"] == 1.0
    assert found["train"]["labels_per_point_min"] == 0
    assert found["train"]["labels_per_point_max"] == 2
    assert found["train"]["points_without_labels"] == 1
    assert found["train"]["points_without_text"] == 1
    assert found["train"]["duplicate_texts"] == 2
    assert found["train"]["duplicate_uids"] == 1
    assert found["points_per_label_mean"] == pytest.approx(5 / 3)
    assert found["points_per_label_median"] == 1.0
    assert found["points_per_label_max"] == 4
    assert found["labels_without_points"] == 1
    assert found["labels_without_text"] == 1
    assert found["duplicate_label_texts"] == 1
    assert found["test_texts_in_train"] == 1


def test_report_reads_the_text_the_model_would_read():
    train = make_points(["x", "x"], ["one", "two"])
    assert report(make_dataset(train), "title")["train"]["duplicate_texts"] == 1
    assert report(make_dataset(train), "title+content")["train"]["duplicate_texts"] == 0


def test_report_without_test_points_is_plain_json_and_plain_text():
    dataset = make_dataset(make_points(["x"] * 1200))
    found = report(dataset, "title")
    assert json.loads(json.dumps(found))["test"] is None
    lines = report_text(dataset, "title").splitlines()
    assert any(line.split() == ["train", "n", "points", "1,200"] for line in lines)
    assert not any(line.startswith("test labels") for line in lines)


def test_report_of_an_empty_test_part_divides_by_nothing():
    found = report(make_dataset(make_points(["x"]), test=make_points([])), "title")
    assert found["test"]["labels_per_point_mean"] == 0.0
