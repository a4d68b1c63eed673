"""models.data.splits: series stay together, labels keep a training point, a seed is a split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from models.data.dataset import Points
from models.data.splits import group_numbers, series_key, validation_split
from service.core.encoding.text import join_fields


def make_points(texts, labels, n_labels=6):
    dense = np.zeros((len(texts), n_labels), dtype=np.float32)
    for row, columns in enumerate(labels):
        dense[row, list(columns)] = 1.0
    return Points([str(row) for row in range(len(texts))], texts, texts, csr_array(dense))


def split(points, seed=0, **how):
    return validation_split(points, points.titles, np.random.default_rng(seed), **how)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Emma: A Novel", "emma"),
        ("Emma; or, more", "emma"),
        ("Emma — a novel", "emma"),
        ("Emma -- a novel", "emma"),
        ("Emma - a novel", "emma"),
        ("Well-known Tales", "well known tales"),
        ("Emma, Volume 2", "emma"),
        ("Emma (Vol. II of III)", "emma"),
        ("Faust, Part One", "faust"),
        ("The Faerie Queene, Book the First", "the faerie queene"),
        ("Dave Dashaway, No. 12", "dave dashaway"),
        ("The Book of Tea", "the book of tea"),
        ("No Name", "no name"),
        ("Punch, July 9, 1892", "punch july"),
        ("ÉTUDES", "études"),
        (": after", ""),
        ("1984", ""),
        ("", ""),
    ],
)
def test_series_key_is_what_volumes_share(text, key):
    assert series_key(text) == key


series_points = st.lists(
    st.tuples(
        st.sampled_from(["Emma: I", "Emma: II", "Punch, No. 1", "Punch, No. 2", "1984", "", "Tea"]),
        st.sets(st.integers(0, 5), max_size=3),
    ),
    min_size=2,
    max_size=40,
)


@settings(max_examples=100)
@given(rows=series_points, seed=st.integers(0, 3), data=st.data())
def test_split_keeps_its_promises(rows, seed, data):
    texts, labels = [row[0] for row in rows], [row[1] for row in rows]
    points = make_points(texts, labels)
    n = data.draw(st.integers(1, len(rows) - 1))
    train, validation = split(points, seed, n=n)
    assert sorted([*train, *validation]) == list(range(len(rows)))
    assert len(validation) <= n
    assert all(labels[row] for row in validation)
    keys = [series_key(text) or text for text in texts]
    straddling = {keys[row] for row in train} & {keys[row] for row in validation}
    assert straddling <= {""}
    assert set().union(*labels) == set().union(*(labels[row] for row in train))


def test_the_same_generator_state_gives_the_same_split():
    points = make_points([f"title {chr(97 + row)}" for row in range(20)], [{0}] * 20)
    first, second = split(points, 7, n=5), split(points, 7, n=5)
    assert first[1].tolist() == second[1].tolist()
    assert first[1].tolist() != split(points, 8, n=5)[1].tolist()


def test_a_series_larger_than_the_space_left_is_skipped_not_cut():
    texts = ["Emma: 1", "Emma: 2", "Emma: 3", "Tea", "Silk"]
    _, validation = split(make_points(texts, [{0}] * 5), n=2)
    assert {texts[row] for row in validation} == {"Tea", "Silk"}


def test_without_grouping_volumes_may_part():
    points = make_points(["Emma: 1", "Emma: 2"], [{0}, {0}])
    assert len(split(points, n=1, group="none")[1]) == 1
    assert len(split(points, n=1)[1]) == 0


def test_the_only_point_of_a_label_stays():
    points = make_points(["tea", "silk"], [{0}, {1}])
    assert split(points, n=1)[1].tolist() == []


def test_two_groups_that_together_hold_a_label_are_not_both_drawn():
    points = make_points(["tea", "silk", "jade"], [{0}, {0}, {1}])
    for seed in range(10):
        train, validation = split(points, seed, n=2)
        assert 2 in train
        assert len(validation) == 1


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"n": 0}, "at least 1 and fewer than the 3"),
        ({"n": 3}, "at least 1 and fewer than the 3"),
        ({"n": 1, "group": "author"}, 'use "series", "content" or "none"'),
    ],
)
def test_impossible_requests_are_refused(how, sentence):
    with pytest.raises(ValueError, match=sentence):
        split(make_points(["a", "b", "c"], [{0}] * 3), **how)


def test_texts_of_other_points_are_refused():
    points = make_points(["a", "b"], [{0}] * 2)
    with pytest.raises(ValueError, match="1 texts for 2 points"):
        validation_split(points, ["a"], np.random.default_rng(0), n=1)


def test_titles_that_are_views_make_the_groups_that_titles_alone_make():
    titles = ["Punch, July", "Punch, July", "1984", "1984", "Tea"]
    contents = ["of 1892", "another", "a novel", "a song", ""]
    views = [join_fields(pair) for pair in zip(titles, contents, strict=True)]
    assert (group_numbers(views, "series") == group_numbers(titles, "series")).all()
