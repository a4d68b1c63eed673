"""The front is never dominated, and whoever is not on it is."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.tune.front import front_of, pareto_layers
from tests.support.results import tuning_measurement

FEW = st.sampled_from([0.0, 1.0, 2.0, 3.0])
COSTS = st.integers(0, 25).flatmap(lambda n: arrays(np.float64, (n, 3), elements=FEW))


def dominates(one, other):
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(
        a < b for a, b in zip(one, other, strict=True)
    )


@given(COSTS)
def test_layers_are_what_peeling_one_by_one_gives(costs):
    left = set(range(len(costs)))
    layers = pareto_layers(costs)
    layer = 0
    while left:
        front = {i for i in left if not any(dominates(costs[j], costs[i]) for j in left)}
        assert {i for i in range(len(costs)) if layers[i] == layer} == front
        left -= front
        layer += 1


@given(COSTS)
def test_the_front_does_not_depend_on_the_order(costs):
    order = np.random.default_rng(0).permutation(len(costs))
    assert pareto_layers(costs)[order].tolist() == pareto_layers(costs[order]).tolist()


def test_a_smaller_index_is_on_the_front_though_slower_and_worse():
    fast, small, beaten = (
        tuning_measurement(0, p99=50, recall=0.99, size=9),
        tuning_measurement(1, p99=60, recall=0.9, size=3),
        tuning_measurement(2, p99=60, recall=0.9, size=9),
    )
    assert front_of([small, beaten, fast]) == [fast, small]
