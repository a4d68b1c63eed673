"""The learned graph: clusters and weighted edges to labels, from a run of ELIAS."""

import json
from pathlib import Path
from typing import Final

import numpy as np

from models.config import IndexConfig
from models.index.kind import IndexKind, Material
from service.atomic import write_array, write_text

FILES: Final = (
    "graph.json",
    "graph.clusters.npy",
    "graph.cluster_bias.npy",
    "graph.edges.npy",
    "graph.edge_weights.npy",
    "graph.labels.npy",
)
# A choice: few beams, because every pair with a shortlist may be measured.
_BEAMS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128)
_SHORTLISTS = (100, 200, 400, 1000, 3000)
_LABELS_A_CLUSTER = 120
"""A visit to a cluster takes about as long as scoring this many labels (docs/decisions/0013)."""


class LearnedGraph(IndexKind):
    """`index.kind = "learned-graph"`: it has no settings, as those of `elias` decide."""

    name = "learned-graph"
    metric = "probability"

    def build(self, material: Material, config: IndexConfig, folder: Path) -> list[str]:
        """Write the graph's arrays; returns the file names. Raises ValueError without a graph."""
        graph = material.graph
        if graph is None:
            raise ValueError(
                "material.graph is None: a learned-graph needs a model that learns one"
            )
        about = json.dumps({"alpha": graph.alpha, "logit_bias": material.logit_bias})
        settings, *arrays = (folder / name for name in FILES)
        write_text(settings, about)
        parts = (graph.clusters, graph.bias, graph.edges, graph.weights, material.vectors)
        for path, part in zip(arrays, parts, strict=True):
            write_array(path, np.ascontiguousarray(part))
        return list(FILES)

    def grid(self, config: IndexConfig, n_labels: int) -> list[dict[str, int]]:
        """Pairs of beam and shortlist by their cost, then a search of all edges."""
        pairs = [(beam, size) for beam in _BEAMS for size in _SHORTLISTS]
        pairs.sort(key=lambda pair: pair[0] * _LABELS_A_CLUSTER + pair[1])
        return [*({"beam": beam, "shortlist": size} for beam, size in pairs), {}]
