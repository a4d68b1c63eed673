"""Linear classifiers for the children of every node, trained many nodes at a time.

A child is trained on the points that reach its parent, a point reaching every node above one of its
labels; it is positive where the point reaches it too. Nodes and label slots are trained alike.
Logistic loss on dense embeddings, Adam on mini-batches. Items go in groups of neighbours, a group's
classifiers being the rows of one matrix, so that there is no loop over nodes. Sparse features have
a trainer of their own, in `sparse.py`.
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

_GROUP: Final = 256  # items trained together
_BATCH: Final = 1024
_LEAST_STEPS: Final = 100  # of a group that few points reach


@dataclass(frozen=True, slots=True)
class Reached:
    """Which items a point reaches, (n_points, n_items): nodes, then label slots.

    `parent` (n_items,) is each item's node; the root, which has none, has itself.
    """

    items: csc_array
    parent: Ints
    n_nodes: int


@dataclass(frozen=True, slots=True)
class FitConfig:
    """How long and how hard: `penalty` is that of moving a weight by one, squared and halved."""

    epochs: int = 5
    lr: float = 0.1
    penalty: float = 0.1


def reached(shape: TreeShape, labels: csr_array) -> Reached:
    """Nodes above, and slots of, the labels (n_points, n_labels) of each point."""
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
    """Train the classifiers of the items from the first up to before the second, in place.

    `points` are (n_points, dim), `weights` (n_items, dim) and `bias` (n_items,) are of all items,
    and training starts at, and is held to, what they are. The same seed gives the same weights,
    however many threads there are. Raises ValueError for the root.
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
    wanted: Tensor,
    active: Tensor,
    start: Tensor,
    config: FitConfig,
    generator: torch.Generator,
) -> Tensor:
    """Weights with the bias as last column, (items, dim + 1)."""
    n, batch = len(points), min(_BATCH, len(points))
    per_epoch = -(-n // batch)
    n_steps = max(config.epochs * per_epoch, _LEAST_STEPS)
    found = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([found], lr=config.lr)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(n_steps):
        if step % per_epoch == 0:
            order = torch.randperm(n, generator=generator)
        picked = order[step % per_epoch * batch :][:batch]
        logits = points[picked] @ found[:, :-1].T + found[:, -1]  # (batch, items)
        losses = binary_cross_entropy_with_logits(
            logits, wanted[picked].float(), weight=active[picked].float(), reduction="sum"
        )
        moved = (found - start)[:, :-1].square().sum()
        optimizer.zero_grad()
        (losses * (n / len(picked)) + config.penalty / 2 * moved).backward()
        optimizer.param_groups[0]["lr"] = config.lr * (1 - step / n_steps)
        optimizer.step()
    return found.detach()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Steps are too short to share out, and sums would depend on how they were."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
