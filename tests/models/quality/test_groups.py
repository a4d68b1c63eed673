"""Errors and folds of points in groups."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from models.quality.groups import clustered_error, fold_in_two, folds_of

groups_of = st.lists(st.integers(0, 6), min_size=2, max_size=40)


def test_the_error_is_that_of_many_draws_of_whole_groups():
    """400 groups of 1 to 9 points that are right or wrong together, drawn 500 times."""
    rng = np.random.default_rng(3)
    means, errors = [], []
    for _ in range(500):
        groups = np.repeat(np.arange(400), rng.integers(1, 10, 400))
        right = (rng.random(400) < 0.3)[groups].astype(float)
        means.append(right.mean())
        errors.append(clustered_error(right, groups))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)
    as_if_independent = np.sqrt(0.3 * 0.7 / 2000)
    assert np.mean(errors) > 2 * as_if_independent


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_groups_of_one_give_the_usual_error(values):
    usual = np.std(values) / np.sqrt(len(values))
    assert clustered_error(np.array(values), np.arange(len(values))) == pytest.approx(usual)


def test_a_difference_of_like_systems_has_a_small_error():
    rng = np.random.default_rng(4)
    ours = rng.random(1000)
    theirs = ours + rng.normal(0, 0.01, 1000)
    groups = np.arange(1000) // 2
    paired = clustered_error(ours - theirs, groups)
    assert paired < clustered_error(ours, groups) / 10


@given(groups_of, st.integers(0, 99))
def test_folds_keep_groups_whole_and_hold_something_each(groups, seed):
    groups = np.array(groups)
    second = fold_in_two(groups, np.random.default_rng(seed))
    assert 0 < second.sum() < len(groups)
    if len(np.unique(groups)) > 1:
        assert all(len(np.unique(second[groups == group])) == 1 for group in np.unique(groups))


def test_folds_of_small_groups_are_halves():
    second = fold_in_two(np.arange(1000) // 3, np.random.default_rng(0))
    assert second.mean() == pytest.approx(0.5, abs=0.01)


def test_one_point_has_no_halves():
    with pytest.raises(ValueError, match="1 points cannot be in 2 folds"):
        fold_in_two(np.zeros(1, np.int64), np.random.default_rng(0))


@given(groups_of, st.integers(2, 5), st.integers(0, 99))
@example([0, 1, 2, 4, 4, 4], 4, 2)  # a group of half the points
def test_every_point_is_in_one_of_several_folds_with_its_group(groups, n_folds, seed):
    groups = np.array(groups * 3)
    fold = folds_of(groups, n_folds, np.random.default_rng(seed))
    assert set(fold) == set(range(n_folds))
    if len(np.unique(groups)) >= n_folds:
        assert all(len(np.unique(fold[groups == group])) == 1 for group in np.unique(groups))
