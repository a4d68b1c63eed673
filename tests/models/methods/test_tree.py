"""A forest trained on embeddings, as it is written and served."""

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from models.config import IndexConfig
from models.index.kind import Material
from models.index.label_tree import LabelTree, tree_config
from models.label_trees.shape import EntropySplit, MassBalance
from models.methods.tree import TreeConfig, train_forest, with_first_ranked, write_forest
from service.bundle.manifest import IndexInfo
from service.core.index.label_tree import FILES, open_label_tree

DIM, N_LABELS, N_POINTS = 16, 150, 1500
BIAS = -4.0


def made_up() -> tuple[np.ndarray, np.ndarray, csr_array]:
    """Label vectors, points that score their label highest, and the labels (the last has none)."""
    rng = np.random.default_rng(2)
    vectors = (6 * rng.standard_normal((N_LABELS, DIM)) / DIM**0.5).astype(np.float32)
    of = rng.integers(N_LABELS - 1, size=N_POINTS)
    points = vectors[of] + 1.0 * rng.standard_normal((N_POINTS, DIM)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    places = (np.arange(N_POINTS), of)
    labels = csr_array((np.ones(N_POINTS, np.float32), places), shape=(N_POINTS, N_LABELS))
    return vectors, points.astype(np.float32), labels


VECTORS, POINTS, LABELS = made_up()


def opened(folder: Path, config: TreeConfig, beam: int):
    write_forest(train_forest(VECTORS, BIAS, POINTS, LABELS, config), folder)
    info = IndexInfo(
        kind="label-tree", files=list(FILES), metric="probability", params={}, n_rows=N_LABELS
    )
    return open_label_tree(folder, info, DIM, {"some": {"beam": beam}, "exact": {}})


def found_share(index, effort: str) -> float:
    truth = np.argsort(-(POINTS[:300] @ VECTORS.T), axis=1)[:, :5]
    rows = index.search(POINTS[:300], 5, effort).rows
    return float((rows[:, :, None] == truth[:, None, :]).any(axis=1).mean())


@pytest.mark.parametrize("n_trees", [1, 2])
@pytest.mark.parametrize("rule", [MassBalance(0.0), MassBalance(1.0), EntropySplit(0.2)])
def test_exhaustive_answers_are_the_label_vectors_own(tmp_path, rule, n_trees):
    config = TreeConfig(rule=rule, leaf_size=6, levels=2, n_trees=n_trees)
    index = opened(tmp_path, config, beam=8)
    hits = index.search(POINTS[:50], 10, "exact")
    logits = POINTS[:50] @ VECTORS.T + BIAS
    expected = -np.sort(-1 / (1 + np.exp(-logits)), axis=1)[:, :10]
    np.testing.assert_allclose(hits.scores, expected, rtol=1e-4)
    assert found_share(index, "exact") > 0.999
    assert found_share(index, "some") > 0.8  # of 150 labels some 40 are scored


def test_a_second_tree_finds_what_the_first_misses(tmp_path):
    shares = []
    for n_trees in (1, 3):
        folder = tmp_path / str(n_trees)
        folder.mkdir()
        config = TreeConfig(leaf_size=6, levels=1, n_trees=n_trees)
        shares.append(found_share(opened(folder, config, beam=2), "some"))
    assert shares[1] > shares[0] + 0.05


def test_the_first_ranked_labels_join_the_relevant_ones():
    taught = with_first_ranked(POINTS, LABELS, VECTORS, 3).toarray()
    best = np.argsort(-(POINTS @ VECTORS.T), axis=1)[:, :3]
    expected = LABELS.toarray() > 0
    np.put_along_axis(expected, best, True, axis=1)
    np.testing.assert_array_equal(taught, expected)
    assert (with_first_ranked(POINTS, LABELS, VECTORS, 0) != LABELS).nnz == 0
    everything = with_first_ranked(POINTS[:4], LABELS[:4], VECTORS, 10**6)
    assert everything.nnz == 4 * N_LABELS


@pytest.mark.parametrize("what", ["points", "labels"])
def test_nothing_to_learn_from_is_refused(what):
    points, vectors, labels = POINTS, VECTORS, LABELS
    if what == "points":
        points, labels = points[:0], labels[:0]
    else:
        vectors, labels = vectors[:0], labels[:, :0]
    with pytest.raises(ValueError, match="give some of both"):
        train_forest(vectors, BIAS, points, labels, TreeConfig())


def test_the_configuration_reaches_the_method_and_the_manifest(tmp_path):
    config = IndexConfig(
        kind="label-tree", tree_form="entropy", tree_entropy=0.3, tree_leaf=7, tree_arity=8,
        tree_count=2, tree_seed=9, tree_path_weight=0.5, tree_epochs=1, tree_lr=0.2,
        tree_penalty=0.3, tree_teacher_top=0,
    )  # fmt: skip
    found = tree_config(config)
    assert (found.rule, found.leaf_size, found.levels) == (EntropySplit(0.3), 7, 3)
    assert (found.n_trees, found.seed, found.path_weight) == (2, 9, 0.5)
    assert (found.nodes.epochs, found.nodes.lr, found.nodes.penalty) == (1, 0.2, 0.3)
    kind = LabelTree()
    assert kind.params(config)["tree_entropy"] == 0.3
    assert "tree_gamma" not in kind.params(config)
    assert kind.grid(config, 70) == [{"beam": beam} for beam in (1, 2, 3, 4, 5, 6, 8)] + [{}]
    names = kind.build(Material(VECTORS, BIAS, POINTS, LABELS), config, tmp_path)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
