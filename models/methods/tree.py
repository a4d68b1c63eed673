"""Latency-aware label trees (arXiv 2106.00730) on embeddings: a forest, its classifiers, its files.

A search descends a tree of labels from the root, so it scores few classifiers. The tree's shape
(`models/label_trees/shape.py`) trades similarity within clusters for frequent labels near the root.
This module trains the classifiers of the nodes. A leaf scores with the label vectors of the trained
method. `service.core.index.label_tree` opens the files that it writes.

| here | in the papers |
|---|---|
| `MassBalance.gamma`, `EntropySplit.bits` | lambda |
| `leaf_size` | M, at most so many labels in a leaf |
| a point reaches a node | the node is active, or the point's |

Four things differ from the papers (docs/decisions/0014):

- Leaves are not trained. A label's vector, trained against all labels, ranks better than a
  classifier trained within its leaf.
- The probability of the path does not count (`path_weight` 0), which ranks better too.
- Nodes also learn the way to the labels that the method ranks first (`teacher_top`), because these
  are what a search must find.
- The encoder is not trained with the tree, and there is no Huffman tree, which ignores similarity.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.label_trees.classifiers import FitConfig, fit, reached
from models.label_trees.shape import (
    MassBalance,
    Rule,
    TreeShape,
    grow,
    label_vectors,
    merge_levels,
)
from service.atomic import write_array, write_text
from service.core.index.label_tree import (
    ABOUT_FILE,
    BIAS_FILE,
    CHILDREN_FILE,
    FILES,
    LABELS_FILE,
    WEIGHTS_FILE,
)
from service.core.index.tree_beam import Forest, TreeBeam

_SCORES_AT_ONCE: Final = 1 << 25
"""Scores (point, label) at a time. A choice: they take 128 MB."""


@dataclass(frozen=True, slots=True)
class TreeConfig:
    """How to grow and train a forest; tree t has the seed `seed` + t.

    A node has up to 2^`levels` children, because `levels` binary cuts become one step. `leaf_size`
    is the most labels in a leaf. The defaults are measured (docs/decisions/0014).
    """

    rule: Rule = field(default_factory=lambda: MassBalance(0.0))
    leaf_size: int = 32
    levels: int = 4
    n_trees: int = 1
    seed: int = 1
    teacher_top: int = 5
    path_weight: float = 0.0
    nodes: FitConfig = field(default_factory=FitConfig)


@dataclass(frozen=True, slots=True)
class DenseForest:
    """Trained trees: `weights` (n_items, dim), `bias` (n_items,) of nodes, then of label slots."""

    beam: TreeBeam
    shapes: tuple[TreeShape, ...]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]


def train_forest(
    vectors: NDArray[np.float32],
    logit_bias: float,
    points: NDArray[np.float32],
    labels: csr_array,
    config: TreeConfig,
) -> DenseForest:
    """Grow a forest and train its nodes on `points` (n, dim) with `labels` (n, n_labels).

    Leaves score with `vectors` (n_labels, dim) and `logit_bias`. Raises ValueError without points
    or labels.
    """
    if not len(vectors) or not len(points):
        raise ValueError(f"{len(vectors)} labels and {len(points)} points: give some of both")
    counts = np.bincount(labels.indices, minlength=len(vectors))
    similarity_vectors = label_vectors(points, labels)
    assert isinstance(similarity_vectors, np.ndarray)  # because points are dense
    targets = with_first_ranked(points, labels, vectors, config.teacher_top)
    shapes = []
    parts: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    for tree in range(config.n_trees):
        seed = config.seed + tree
        binary = grow(similarity_vectors, counts, config.rule, config.leaf_size, seed)
        shape = merge_levels(binary, config.levels)
        n_nodes = len(shape.first)
        weights = np.zeros((n_nodes + len(vectors), vectors.shape[1]), np.float32)
        bias = np.zeros(len(weights), np.float32)
        weights[n_nodes:], bias[n_nodes:] = vectors[shape.labels], logit_bias
        paths = reached(shape, targets)
        fit(points, paths, (1, n_nodes), weights, bias, config.nodes, seed)
        shapes.append(shape)
        parts.append((weights, bias))
    sizes = [len(shape.first) for shape in shapes]
    return DenseForest(
        TreeBeam(plant(shapes), "logistic", config.path_weight),
        tuple(shapes),
        _nodes_first([weights for weights, _ in parts], sizes),
        _nodes_first([bias for _, bias in parts], sizes),
    )


def with_first_ranked(
    points: NDArray[np.float32], labels: csr_array, vectors: NDArray[np.float32], top: int
) -> csr_array:
    """Each point's labels and the `top` with the highest products, csr (n, n_labels) of ones."""
    ones = csr_array(labels > 0, dtype=np.float32)
    top = min(top, len(vectors))
    if not top:
        return ones
    columns = torch.from_numpy(vectors).T
    step = max(1, _SCORES_AT_ONCE // len(vectors))
    best = [
        torch.topk(torch.from_numpy(points[start : start + step]) @ columns, top).indices.numpy()
        for start in range(0, len(points), step)
    ]
    rows = np.repeat(np.arange(len(points)), top)
    cells = (np.ones(len(rows), np.float32), (rows, np.concatenate(best).reshape(-1)))
    return csr_array((ones + csr_array(cells, shape=ones.shape)) > 0, dtype=np.float32)


def plant(shapes: list[TreeShape]) -> Forest:
    """One forest of all trees: the nodes, tree by tree, then the label slots, tree by tree."""
    n_nodes = sum(len(shape.first) for shape in shapes)
    first, end, roots = [], [], []
    node, slot = 0, n_nodes
    for shape in shapes:
        shift = np.where(shape.leaf, slot, node)
        first.append(shape.first + shift)
        end.append(shape.end + shift)
        roots.append(node)
        node += len(shape.first)
        slot += len(shape.labels)
    labels = np.concatenate([shape.labels for shape in shapes])
    return Forest(np.concatenate(first), np.concatenate(end), labels, np.array(roots))


def _nodes_first(parts: list[NDArray[np.float32]], sizes: list[int]) -> NDArray[np.float32]:
    nodes = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    slots = [part[size:] for part, size in zip(parts, sizes, strict=True)]
    return np.concatenate(nodes + slots)


def write_forest(forest: DenseForest, folder: Path) -> list[str]:
    """Write the files of a forest into `folder`, each atomically; returns their names."""
    tree = forest.beam.forest
    about = {
        "transform": forest.beam.transform,
        "path_weight": forest.beam.path_weight,
        "roots": tree.roots.tolist(),
    }
    write_array(folder / CHILDREN_FILE, np.stack([tree.first, tree.end], axis=1).astype(np.int32))
    write_array(folder / LABELS_FILE, tree.labels.astype(np.int32))
    write_array(folder / WEIGHTS_FILE, forest.weights)
    write_array(folder / BIAS_FILE, forest.bias)
    write_text(folder / ABOUT_FILE, json.dumps(about))
    return list(FILES)
