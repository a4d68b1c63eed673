"""Latency-aware label trees (arXiv 2106.00730) on embeddings: a forest, its classifiers, its files.

A tree over the labels is searched from the root, so that a query meets few classifiers. Its shape
(`models/label_trees/shape.py`) trades similarity for frequent labels near the root; here its nodes
get their classifiers, its leaves the label vectors that ASTRA has trained, and all of it the files
that `service.core.index.label_tree` opens.

| here | in the papers |
|---|---|
| `MassBalance.gamma`, `EntropySplit.bits` | lambda |
| `leaf_size` | M, at most so many labels in a leaf |
| a point reaches a node | the node is active, or the point's |

What differs: leaves are not trained. A label's own classifier, trained against all labels, ranks
better than one trained against its leaf alone, and better without the path's probability
(`path_weight` 0; docs/decisions/0014). And a node is taught where the labels lie that ASTRA ranks
first, not the relevant ones alone, for it is those that a search has to find (`teacher_top`).

But: the encoder is not trained along, and there is no Huffman tree, which forgets similarity.
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
from service.atomic import write_array, write_atomic
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


@dataclass(frozen=True, slots=True)
class TreeConfig:
    """How a forest is grown and trained; tree t takes the seed `seed + t`.

    Each node has up to 2^`levels` children: so many binary cuts are made one step.
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
    """Trained trees: `weights` (n_items, dim) and `bias` (n_items,) of nodes, then label slots."""

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
    """Grow and train on `points` (n, dim) with `labels` (n, n_labels).

    Leaves score by `vectors` (n_labels, dim) and `logit_bias`. Raises ValueError where there is no
    point or no label.
    """
    if not len(vectors) or not len(points):
        raise ValueError(f"{len(vectors)} labels and {len(points)} points: give some of both")
    counts = np.bincount(labels.indices, minlength=len(vectors))
    likeness = label_vectors(points, labels)
    assert isinstance(likeness, np.ndarray)  # of dense points
    taught = with_first_ranked(points, labels, vectors, config.teacher_top)
    shapes = []
    parts: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    for tree in range(config.n_trees):
        grown = grow(likeness, counts, config.rule, config.leaf_size, config.seed + tree)
        shape = merge_levels(grown, config.levels)
        n_nodes = len(shape.first)
        weights = np.zeros((n_nodes + len(vectors), vectors.shape[1]), np.float32)
        bias = np.zeros(len(weights), np.float32)
        weights[n_nodes:], bias[n_nodes:] = vectors[shape.labels], logit_bias
        paths = reached(shape, taught)
        fit(points, paths, (1, n_nodes), weights, bias, config.nodes, config.seed + tree)
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
    """The labels of each point and the `top` whose vectors score highest, csr of ones."""
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
    """Trees side by side: nodes of all trees, tree by tree, then their label slots likewise."""
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
    """Leave the files of a forest in `folder`, each written atomically; returns their names."""
    tree = forest.beam.forest
    about = {
        "transform": forest.beam.transform,
        "path_weight": forest.beam.path_weight,
        "roots": tree.roots.tolist(),
    }
    text = json.dumps(about)
    write_array(folder / CHILDREN_FILE, np.stack([tree.first, tree.end], axis=1).astype(np.int32))
    write_array(folder / LABELS_FILE, tree.labels.astype(np.int32))
    write_array(folder / WEIGHTS_FILE, forest.weights)
    write_array(folder / BIAS_FILE, forest.bias)
    write_atomic(folder / ABOUT_FILE, lambda path: path.write_text(text, encoding="utf-8"))
    return list(FILES)
