"""Label trees of any shape for tests, and a beam search over them that is plain to read."""

import json
from pathlib import Path

import numpy as np

from service.core.index.label_tree import (
    ABOUT_FILE,
    BIAS_FILE,
    CHILDREN_FILE,
    LABELS_FILE,
    WEIGHTS_FILE,
)
from service.core.index.tree_beam import Forest, Transform, cost_of


def ragged_forest(rng: np.random.Generator, n_labels: int, n_trees: int) -> Forest:
    """Trees whose nodes have one to five children and whose leaves have one to five labels."""
    trees = []
    for _ in range(n_trees):
        sets, depth_first = [rng.permutation(n_labels)], []
        while len(depth_first) < len(sets):
            labels = sets[len(depth_first)]
            if len(labels) <= 5 and rng.random() < 0.7:
                depth_first.append(("leaf", labels))
                continue
            n_cuts = rng.integers(0, min(5, len(labels)))
            cuts = np.sort(rng.choice(np.arange(1, len(labels)), n_cuts, replace=False))
            depth_first.append(("node", (len(sets), len(sets) + n_cuts + 1)))
            sets += np.split(labels, cuts)
        trees.append(depth_first)
    n_nodes = sum(map(len, trees))
    first, end, labels, roots = [], [], [], []
    node = 0
    for tree in trees:
        roots.append(node)
        for kind, what in tree:
            if kind == "node":
                first.append(what[0] + node)
                end.append(what[1] + node)
            else:
                first.append(n_nodes + len(labels))
                labels += what.tolist()
                end.append(n_nodes + len(labels))
        node += len(tree)
    return Forest(*(np.array(part, np.int64) for part in (first, end, labels, roots)))


def plain_search(
    forest: Forest,
    scores: np.ndarray,
    root: int,
    beam: int,
    transform: Transform,
    path_weight: float,
) -> tuple[dict[int, np.float32], int]:
    """Cost of each label that one query's beam reaches in one tree, and how many leaves it opened.

    `scores` (n_items,) are of the query with every item. Stops by the rule as the paper has it:
    once `beam` leaves cost no more than any open node.
    """
    costs = [cost_of(scores[item : item + 1], transform)[0] for item in range(len(scores))]
    leaf = forest.leaf
    beamed = [(np.float32(0), root)]
    while True:
        done = [entry for entry in beamed if leaf[entry[1]]]
        still = [entry for entry in beamed if not leaf[entry[1]]]
        if not still or (len(done) >= beam and sorted(done)[beam - 1] <= min(still)):
            break
        for cost, node in still:
            done += [
                (np.float32(costs[child] + cost), child)
                for child in range(forest.first[node], forest.end[node])
            ]
        beamed = sorted(done)[:beam]
    found = {}
    for cost, node in beamed:
        for slot in range(forest.first[node], forest.end[node]):
            own = costs[slot]
            if path_weight:
                own = np.float32(own + np.float32(path_weight) * cost)
            found[int(forest.labels[slot - forest.n_nodes])] = own
    return found, len(beamed)


def write_tree(
    folder: Path,
    forest: Forest,
    weights: np.ndarray,
    bias: np.ndarray,
    transform: str = "logistic",
    path_weight: float = 1.0,
) -> None:
    """The files as `models.methods.tree` leaves them."""
    children = np.stack([forest.first, forest.end], axis=1).astype(np.int32)
    np.save(folder / CHILDREN_FILE, children)
    np.save(folder / LABELS_FILE, forest.labels.astype(np.int32))
    np.save(folder / WEIGHTS_FILE, weights)
    np.save(folder / BIAS_FILE, bias)
    about = {"transform": transform, "path_weight": path_weight, "roots": forest.roots.tolist()}
    (folder / ABOUT_FILE).write_text(json.dumps(about))
