"""The Pareto front: the measurements that no other one dominates in p99, recall@10 and bytes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.tune.candidate import Measurement


def pareto_layers(costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """Pareto layer (n,) of each row of `costs` (n, objectives); layer 0 is the front.

    Lower costs are better. A row dominates another if it is worse in no objective and better in at
    least one. Layer 1 is the front of the rows outside layer 0, and so on. Equal rows share a
    layer.

    >>> pareto_layers(np.array([[1.0, 3.0], [2.0, 2.0], [2.0, 4.0], [3.0, 5.0]]))
    array([0, 0, 1, 2])
    """
    layers = np.full(len(costs), -1, np.int64)
    no_worse = np.asarray((costs[:, None] <= costs[None]).all(axis=2))  # (n, n), row by column
    dominates = no_worse & ~no_worse.T
    layer = 0
    while len(left := np.flatnonzero(layers < 0)):
        beaten = dominates[np.ix_(left, left)].any(axis=0)
        layers[left[~beaten]] = layer
        layer += 1
    return layers


def layers_of(found: Sequence[Measurement]) -> NDArray[np.int64]:
    """Pareto layer (n,) of each measurement, by p99, recall@10 and bytes."""
    costs = [(each.timing.p99, -each.recall, each.index_bytes) for each in found]
    return pareto_layers(np.array(costs, np.float64).reshape(len(costs), 3))


def front_of(found: Sequence[Measurement]) -> list[Measurement]:
    """The measurements that no other one dominates, the fastest first."""
    on_front = [each for each, layer in zip(found, layers_of(found), strict=True) if layer == 0]
    return sorted(on_front, key=lambda each: (each.timing.p99, -each.recall))
