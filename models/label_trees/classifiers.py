"""Trains the linear classifiers of a label tree on dense embeddings, many nodes at a time.

A point reaches every node above one of its labels. A node's classifier is trained on the points
that reach its parent; those that reach the node too are positive. The slots of labels in leaves
are trained in the same way; nodes and slots together are called items. The loss is logistic, the
optimizer Adam on mini-batches. A group of neighbouring items is trained as one matrix with a row
for each, so there is no loop over nodes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array, hstack
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from models.label_trees.shape import Ints, TreeShape

# Choices: larger groups and batches take more memory.
_GROUP: Final = 256  # items in a matrix
_BATCH: Final = 1024  # points in a mini-batch
_MIN_STEPS: Final = 100  # a group that few points reach would otherwise hardly be trained


@dataclass(frozen=True, slots=True)
class Reached:
    """The items that each point reaches: `items` (n_points, n_items), nodes before label slots.

    `parent` (n_items,) is the node above each item; the root is its own parent.
    """

    items: csc_array
    parent: Ints
    n_nodes: int


@dataclass(frozen=True, slots=True)
class FitConfig:
    """Epochs, learning rate and penalty of a training.

    The loss gains penalty / 2 times the squared distance of the weights from their start.
    """

    epochs: int = 5
    lr: float = 0.1
    penalty: float = 0.1


def reached(shape: TreeShape, labels: csr_array) -> Reached:
    """Find the items that each point reaches by its `labels` (n_points, n_labels)."""
    n_nodes, n_slots = len(shape.first), len(shape.labels)
    parent = np.zeros(n_nodes + n_slots, np.int64)
    sizes = shape.end - shape.first
    inner = np.flatnonzero(~shape.leaf)
    parent[1:n_nodes] = np.repeat(inner, sizes[inner])
    parent[n_nodes:] = np.repeat(np.flatnonzero(shape.leaf), sizes[shape.leaf])
    rows, columns = [], []
    slots, nodes = np.arange(n_slots), parent[n_nodes:]
    while len(slots):
        rows.append(slots)
        columns.append(nodes)
        below = nodes > 0
        slots, nodes = slots[below], parent[nodes[below]]
    cells = (np.concatenate(rows), np.concatenate(columns))
    above = csr_array((np.ones(len(cells[0]), np.float32), cells), shape=(n_slots, n_nodes))
    by_slot = csc_array(labels > 0, dtype=np.float32)[:, shape.labels]
    items = hstack([csc_array(by_slot @ above), by_slot], format="csc")
    return Reached(csc_array(items), parent, n_nodes)


def fit(
    points: NDArray[np.float32],
    paths: Reached,
    items: tuple[int, int],
    weights: NDArray[np.float32],
    bias: NDArray[np.float32],
    config: FitConfig,
    seed: int,
) -> None:
    """Train the classifiers of items[0] to items[1] - 1 in place.

    `points` are embeddings (n_points, dim). `weights` (n_items, dim) and `bias` (n_items,) are
    those of all items; training starts from them, and the penalty draws the weights back to their
    start. The same seed gives the same weights with any number of threads. Raises ValueError for
    the root.
    """
    if items[0] < 1:
        raise ValueError("item 0 is the root, which has no classifier: start at 1")
    generator = torch.Generator().manual_seed(seed)
    for start in range(items[0], items[1], _GROUP):
        group = slice(start, min(start + _GROUP, items[1]))
        parent, column = np.unique(paths.parent[group], return_inverse=True)
        active = csr_array(paths.items[:, parent])
        rows = np.flatnonzero(np.diff(active.indptr))
        if not len(rows):
            continue
        with _one_thread():
            fitted = _fit_group(
                torch.from_numpy(points[rows]),
                torch.from_numpy(csr_array(paths.items[:, group])[rows].toarray() > 0),
                torch.from_numpy((active[rows].toarray() > 0)[:, column]),
                torch.from_numpy(np.concatenate([weights[group], bias[group, None]], axis=1)),
                config,
                generator,
            ).numpy()
        weights[group], bias[group] = fitted[:, :-1], fitted[:, -1]


def _fit_group(
    points: Tensor,
    positive: Tensor,
    active: Tensor,
    start: Tensor,
    config: FitConfig,
    generator: torch.Generator,
) -> Tensor:
    """Train one group; returns its weights with the bias as last column, (n_items, dim + 1).

    `points` are (n, dim); `positive` and `active` are masks (n, n_items): the point reaches the
    item, and its parent. `start` has the shape of the result.
    """
    n, batch = len(points), min(_BATCH, len(points))
    per_epoch = -(-n // batch)
    n_steps = max(config.epochs * per_epoch, _MIN_STEPS)
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=config.lr)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(n_steps):
        if step % per_epoch == 0:
            order = torch.randperm(n, generator=generator)
        rows = order[step % per_epoch * batch :][:batch]
        logits = points[rows] @ weights[:, :-1].T + weights[:, -1]  # (batch, items)
        loss = binary_cross_entropy_with_logits(
            logits, positive[rows].float(), weight=active[rows].float(), reduction="sum"
        )
        squared_distance = (weights - start)[:, :-1].square().sum()
        optimizer.zero_grad()
        (loss * (n / len(rows)) + config.penalty / 2 * squared_distance).backward()
        optimizer.param_groups[0]["lr"] = config.lr * (1 - step / n_steps)
        optimizer.step()
    return weights.detach()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute on one thread.

    A step is too short to divide, and sums over several threads would depend on their number.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
