"""Is our sparse label tree with gamma 0 as precise as Omikuji's Parabel?

    python -m tests.bench.parabel_check --config models/configs/gutenberg-bag.toml

Both get the same TF-IDF rows of the training points, the same number of trees, leaves of at most
100 labels and beam 10. Both are scored on the validation points, or with `--test` on the test
points. Needs the extra `peers`. Omikuji takes no seed, so its figures vary by some tenths.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array, csr_matrix, vstack

from models.compare.peers.features import TfIdf
from models.compare.peers.omikuji_trees import BEAM, OmikujiTrees
from models.config import load_config
from models.data.dataset import point_texts
from models.data.prepare import open_configured, split
from models.label_trees.shape import EntropySplit, MassBalance, Rule, grow
from models.label_trees.shape import label_vectors as pifa
from models.methods.tree import plant
from models.quality.metrics import precision_at_k
from service.core.index.tree_beam import TreeBeam
from tests.support.sparse_trees import Chunks, SparseTree, fit_svms
from tests.support.tree_depth import expected_depth

LEAF = 100
_AT_ONCE = 256


def ours(
    points: csr_array, labels: csr_array, queries: csr_array, rule: Rule, n_trees: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Ten labels (n, 10) for each query by the mean of the trees' scores, and the costs by name.

    A query with fewer labels has -1 in the other places.
    """
    counts = np.bincount(labels.indices, minlength=labels.shape[1])
    likeness = pifa(points, labels)
    total, depths, fit_s, search_s = csr_array((queries.shape[0], labels.shape[1])), [], 0.0, 0.0
    for seed in range(1, n_trees + 1):
        started = time.process_time()
        shape = grow(likeness, counts, rule, LEAF, seed)
        depths.append(expected_depth(shape, counts))
        weights, bias = fit_svms(points, shape, labels)
        forest = plant([shape])
        tree = SparseTree(TreeBeam(forest, "l3-hinge", 1.0), Chunks.of(weights, bias, forest))
        fit_end = time.process_time()
        parts = [
            tree.search(queries[start : start + _AT_ONCE], BEAM)
            for start in range(0, queries.shape[0], _AT_ONCE)
        ]
        total = csr_array(total + vstack(parts, format="csr"))
        fit_s += fit_end - started
        search_s += time.process_time() - fit_end
    ranked = np.full((queries.shape[0], 10), -1)
    for row in range(queries.shape[0]):
        entries = slice(total.indptr[row], total.indptr[row + 1])
        best = np.argsort(-total.data[entries], kind="stable")[:10]
        ranked[row, : len(best)] = total.indices[entries][best]
    return ranked, {
        "fit_cpu_s": round(fit_s, 1),
        "search_cpu_us": round(1e6 * search_s / queries.shape[0], 1),
        "expected_depth": round(float(np.mean(depths)), 3),
    }


def main() -> None:
    """Train both, and print one line for each rule of ours and one for Omikuji."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--trees", type=int, default=3)
    parser.add_argument("--gammas", type=float, nargs="*", default=[0.0])
    parser.add_argument("--lambdas", type=float, nargs="*", default=[])
    parser.add_argument("--limit", type=int, help="train on this many points only")
    parser.add_argument("--test", action="store_true", help="score the test split")
    args = parser.parse_args()
    config = load_config(args.config, args.set)
    dataset = open_configured(config)
    parts = split(config, dataset)
    texts = point_texts(dataset.train, config.data.fields)
    rows = parts.train_rows[: args.limit]
    features = TfIdf()
    points = features.fit([texts[row] for row in rows])
    labels = csr_array(dataset.train.labels[rows] > 0, dtype=np.float32)
    if args.test:
        if dataset.test is None:
            raise SystemExit(f"{dataset.name} has no test points")
        texts_scored, truth = point_texts(dataset.test, config.data.fields), dataset.test.labels
    else:
        texts_scored = [texts[row] for row in parts.validation_rows]
        truth = dataset.train.labels[parts.validation_rows]
    queries = features.transform(texts_scored)
    rules = [*map(MassBalance, args.gammas), *map(EntropySplit, args.lambdas)]
    for rule in rules:
        ranked, costs = ours(
            csr_array(points), labels, csr_array(queries), rule, n_trees=args.trees
        )
        print(json.dumps({"ours": repr(rule), **_figures(ranked, truth), **costs}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"n_trees": args.trees, "cluster_k": 2, "cluster_balanced": True}
        peer = OmikujiTrees("Parabel", Path(folder), settings)
        peer.fit(points, csr_matrix(labels))
        ranked = peer.rank(queries, 10)
    print(json.dumps({"omikuji": peer.version, **_figures(ranked, truth)}))


def _figures(ranked: np.ndarray, truth: csr_array) -> dict[str, float]:
    return {f"p_at_{k}": round(100 * precision_at_k(ranked, truth, k), 2) for k in (1, 3, 5)}


if __name__ == "__main__":
    main()
