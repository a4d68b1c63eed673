"""The forest of label trees: nested clusters of labels, which a beam search descends."""

from pathlib import Path

from models.config import IndexConfig
from models.index.kind import IndexKind, Material
from models.label_trees.classifiers import FitConfig
from models.label_trees.shape import EntropySplit, MassBalance, Rule
from models.methods.tree import TreeConfig, train_forest, write_forest
from service.core.index.label_tree import BEAM, KIND, METRIC

_BEAMS = (
    *(1, 2, 3, 4, 5, 6, 8, 10, 12, 14),
    *range(16, 32, 4),
    *range(32, 64, 8),
    *range(64, 128, 16),
    *range(128, 256, 32),
    *range(256, 512, 64),
    *range(512, 1025, 128),
)
"""Beams to choose from. A choice: from 4 on, each is a seventh to a third above the one before."""


class LabelTree(IndexKind):
    """`index.kind = "label-tree"`."""

    name = KIND
    metric = METRIC
    wants_points = True

    def build(self, material: Material, config: IndexConfig, folder: Path) -> list[str]:
        """Grow, train and write the trees; returns the file names."""
        forest = train_forest(
            material.vectors,
            material.logit_bias,
            material.points,
            material.labels,
            tree_config(config),
        )
        return write_forest(forest, folder)

    def params(self, config: IndexConfig) -> dict[str, int | float | str]:
        """The settings of the trees' shape and of their nodes' training."""
        form = {"mass": "tree_gamma", "entropy": "tree_entropy"}[config.tree_form]
        shape = ("tree_form", form, "tree_leaf", "tree_arity", "tree_count", "tree_seed")
        nodes = ("tree_teacher_top", "tree_path_weight", "tree_epochs", "tree_lr", "tree_penalty")
        return {key: getattr(config, key) for key in (*shape, *nodes)}

    def grid(self, config: IndexConfig, n_labels: int) -> list[dict[str, int]]:
        """Beams below the smallest possible number of leaves, then all leaves."""
        least_leaves = -(-n_labels // config.tree_leaf)
        return [*({BEAM: beam} for beam in _BEAMS if beam < least_leaves), {}]


def tree_config(config: IndexConfig) -> TreeConfig:
    """The settings of the forest, from `index.tree_*`."""
    rule: Rule = MassBalance(config.tree_gamma)
    if config.tree_form == "entropy":
        rule = EntropySplit(config.tree_entropy)
    return TreeConfig(
        rule=rule,
        leaf_size=config.tree_leaf,
        levels=config.tree_arity.bit_length() - 1,
        n_trees=config.tree_count,
        seed=config.tree_seed,
        teacher_top=config.tree_teacher_top,
        path_weight=config.tree_path_weight,
        nodes=FitConfig(config.tree_epochs, config.tree_lr, config.tree_penalty),
    )
