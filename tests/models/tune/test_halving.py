"""Halving keeps what holds the goal best, and costs less than the full grid."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tune.goal import Goal, choose
from models.tune.halving import FEWEST_SURVIVORS, better, halve, rungs
from tests.support.results import tuning_measurement

WORLDS = st.lists(
    st.tuples(st.floats(10, 1000), st.floats(0.5, 1), st.integers(1, 10**8)),
    min_size=1,
    max_size=120,
)


def run(world, n_queries, goal, noise=lambda: 0.0):
    """Halve over made-up candidates, whose figures `noise` moves by a share."""
    of = {}
    for place, (p99, recall, size) in enumerate(world):
        true = tuning_measurement(place, p99=p99, recall=recall, size=size)
        of[true.candidate] = true
    counts = []

    def measure(candidates, n, last):
        counts.append((len(candidates), n, last))
        return [
            tuning_measurement(
                dict(each.params)["ef_search"],
                p99=of[each].timing.p99 * (1 + noise()),
                recall=of[each].recall,
                size=of[each].index_bytes,
                n_queries=n,
            )
            for each in candidates
        ]

    return halve(list(of), n_queries, goal, measure), counts, list(of.values())


@settings(max_examples=60)
@given(WORLDS, st.integers(50, 3000), st.floats(10, 1000), st.floats(0.5, 0.999))
def test_the_best_that_holds_the_goal_survives(world, n_queries, p99_us, recall):
    goal = Goal(p99_us=p99_us, recall=recall)
    found, _, true = run(world, n_queries, goal)
    wanted, got = choose(goal, true), choose(goal, found[-1])
    assert bool(got) == bool(wanted)
    if wanted:
        assert goal.cost(got[0]) == goal.cost(wanted[0])


@settings(max_examples=60)
@given(WORLDS, st.integers(1, 5000))
def test_rungs_double_and_candidates_halve(world, n_queries):
    _, counts, _ = run(world, n_queries, Goal(recall=0.9))
    assert counts[-1][1:] == (n_queries, True)
    assert [n for _, n, _ in counts] == rungs(n_queries, len(world))
    for (many, n, last), (fewer, more, _) in pairwise(counts):
        assert not last
        assert more in (2 * n, 2 * n + 1)
        assert fewer == max(-(-many // 2), min(FEWEST_SURVIVORS, many))


def test_under_noise_a_point_that_holds_is_still_found():
    rng = np.random.default_rng(3)
    grid = np.geomspace(20, 900, 200)
    world = [(p99, 1 - 2 / p99, 10) for p99 in grid]  # recall 0.98 from 100 us on
    for _ in range(20):
        found, counts, _ = run(world, 2000, Goal(200, 0.98), lambda: float(rng.normal(0, 0.1)))
        assert choose(Goal(200, 0.98), found[-1])
        assert sum(many * n for many, n, _ in counts) < 0.4 * len(world) * 2000


def test_half_of_the_places_are_not_all_near_the_goal():
    near = [tuning_measurement(i, p99=100 + i, recall=0.9) for i in range(10)]
    extreme = tuning_measurement(50, p99=900, recall=0.9999)
    assert extreme in better([*near, extreme], Goal(p99_us=200, recall=0.9), 6)
