"""Constraints, margins and the sentence about what is missed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.tune.goal import P99_MARGIN, Goal, choose, nearest
from tests.support.results import tuning_measurement

MEASUREMENTS = st.builds(
    tuning_measurement,
    p99=st.floats(1, 1000),
    recall=st.floats(0, 1),
    size=st.integers(1, 10**9),
    p_at_1_loss=st.floats(-5, 30),
    recall_error=st.floats(0, 0.02),
    own_scores=st.booleans(),
)
GOALS = st.builds(
    Goal,
    p99_us=st.none() | st.floats(1, 1000),
    recall=st.none() | st.floats(0, 1),
    p_at_1_loss=st.none() | st.floats(0, 5),
    memory_mb=st.none() | st.floats(0.1, 1000),
)


@given(GOALS, MEASUREMENTS)
def test_the_distance_is_zero_exactly_where_nothing_is_missed(goal, found):
    for safely in (False, True):
        misses = goal.misses(found, safely=safely)
        assert (goal.distance(found, safely=safely) == 0) == (not misses)
        assert all(miss.distance > 0 for miss in misses)


@given(GOALS, MEASUREMENTS)
def test_what_holds_safely_holds_plainly(goal, found):
    if not goal.misses(found, safely=True):
        assert not goal.misses(found, safely=False)


@given(GOALS, st.lists(MEASUREMENTS, min_size=1, max_size=8))
def test_the_choice_holds_all_and_none_that_holds_is_cheaper(goal, found):
    chosen = choose(goal, found)
    holding = [each for each in found if goal.distance(each) == 0]
    assert len(chosen) == len(holding)
    if chosen:
        assert goal.cost(chosen[0]) == min(goal.cost(each) for each in holding)


def test_a_point_just_under_the_limit_is_not_safe():
    goal = Goal(p99_us=200, recall=0.98)
    close = tuning_measurement(p99=190, recall=0.981, recall_error=0.001)
    assert [miss.what for miss in goal.misses(close, safely=True)] == ["p99", "recall"]
    assert not goal.misses(close, safely=False)
    assert not goal.misses(tuning_measurement(p99=200 / (1 + P99_MARGIN), recall=0.98), safely=True)


def test_with_quality_asked_for_the_fastest_wins_else_the_best():
    fast, good = (
        tuning_measurement(0, p99=50, recall=0.98),
        tuning_measurement(1, p99=100, recall=0.99),
    )
    assert choose(Goal(recall=0.9), [good, fast])[0] == fast
    assert choose(Goal(p_at_1_loss=1.0), [good, fast])[0] == fast
    assert choose(Goal(p99_us=200), [fast, good])[0] == good
    assert choose(Goal(), [fast, good])[0] == good


def test_a_few_percent_of_time_do_not_count_against_recall():
    fast, good = (
        tuning_measurement(0, p99=75, recall=0.98),
        tuning_measurement(1, p99=78, recall=0.99),
    )
    assert choose(Goal(recall=0.9), [fast, good])[0] == good


def test_a_kind_with_scores_of_its_own_must_not_lose_precision_unasked():
    loses = tuning_measurement(recall=1.0, p_at_1_loss=3.0)
    own = tuning_measurement(recall=1.0, p_at_1_loss=3.0, own_scores=True)
    assert not Goal(recall=0.98).misses(loses, safely=True)
    assert [miss.what for miss in Goal(recall=0.98).misses(own, safely=True)] == ["P@1"]
    assert not Goal(recall=0.98, p_at_1_loss=5.0).misses(own, safely=True)


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        (Goal(p99_us=100), "p99 is 150 us, 63 us over 100 (87 with the margin of 15%)"),
        (Goal(recall=0.99), "recall@10 is 0.9800 (0.9800 less two standard errors), 0.0100 under"),
        (Goal(p_at_1_loss=0.1), "P@1 loses 0.50 points, 0.40 more than 0.1"),
        (Goal(memory_mb=4), "the index has 10.0 MB, 6.0 over 4"),
    ],
)
def test_the_sentence_names_the_nearest_and_what_it_misses_by_how_much(goal, said):
    near = tuning_measurement(7, p99=150, p_at_1_loss=0.5)
    far = tuning_measurement(8, p99=900, recall=0.5, p_at_1_loss=9, size=10**9)
    sentence = nearest(goal, [far, near])
    assert f"no index holds {goal}: the nearest, hnsw, ef_search=7" in sentence
    assert said in sentence


def test_the_sentence_says_how_sure_a_loss_of_precision_is():
    found = tuning_measurement(p_at_1_loss=0.5, p_at_1_loss_error=0.12)
    said = "P@1 loses 0.50 points (standard error 0.12), 0.40 more than 0.1"
    assert said in nearest(Goal(p_at_1_loss=0.1), [found])
