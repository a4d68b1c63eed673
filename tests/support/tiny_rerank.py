"""The tiny bundle with a re-ranker: a memory as a feature, and a few trees made by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from models.rerank.tree_graph import tree_graph
from service.bundle.manifest import MANIFEST
from service.core.engine import Engine
from service.core.rerank.knowledge import KNOWLEDGE_FILES, Knowledge
from tests.support.tiny_bundle import (
    SPECIALS,
    golden_of,
    seal,
    write_tiny_bundle,
)

DEPTH = 20
FEATURES = ("softmax", "memory_mass_100", "frequency", "cooccurrence", "label_share", "rank")
# Feature, threshold, score up to it, score above, whether a missing value goes up to it.
STUMPS = (
    ("softmax", 0.06, -0.4, 0.5, True),
    ("memory_mass_100", 0.05, 0.0, 1.0, True),
    ("frequency", 1.5, 0.1, -0.1, True),
    ("cooccurrence", 0.02, 0.0, 0.3, True),
    ("label_share", 0.4, 0.0, 0.7, True),
    ("rank", 9.5, 0.01, -0.01, True),
)


def write_tiny_reranked_bundle(folder: Path, **options: Any) -> Path:
    """Seal a tiny bundle into `folder` whose efforts but `fast` re-rank 20 labels; return it."""
    return add_reranker(write_tiny_bundle(folder, memory=True, **options))


def add_reranker(folder: Path) -> Path:
    """Give the sealed bundle in `folder` a re-ranker, and seal it again."""
    engine = Engine.open(folder, device="cpu")
    trees = [_stump(*stump) for stump in STUMPS]
    (folder / "rerank.onnx").write_bytes(tree_graph(trees, len(FEATURES)).SerializeToString())
    knowledge = _knowledge(engine)
    for field, name in KNOWLEDGE_FILES.items():
        np.save(folder / name, getattr(knowledge, field))
    manifest = json.loads((folder / MANIFEST).read_text()) | {"golden": []}
    calibration = dict(manifest["calibration"])
    if calibration["file"] is not None:
        calibration["file"] = "rerank.calibration.json"
        knots = {"scores": [-1.0, 0.0, 3.0], "probabilities": [0.05, 0.1, 0.9]}
        (folder / "rerank.calibration.json").write_text(json.dumps(knots))
    if manifest.get("memory"):
        manifest["memory"]["weight"] = 0.0
    manifest["rerank"] = {
        "graph": "rerank.onnx",
        "files": list(KNOWLEDGE_FILES.values()),
        "features": list(FEATURES),
        "depth": DEPTH,
        "trees": len(STUMPS),
        "leaves": 2,
        "calibration": calibration,
        "params": {},
    }
    for point in manifest["operating_points"]:
        if point["name"] != "fast":
            point["params"]["rerank_depth"] = DEPTH
    seal(folder, manifest)
    seal(folder, manifest | {"golden": golden_of(Engine.open(folder, device="cpu"))})
    return folder


def _knowledge(engine: Engine) -> Knowledge:
    """Counts by row, a ring of partners, and the tokens of the labels, which all weigh 1."""
    n_labels = len(engine.labels)
    rows = np.arange(n_labels)
    encodings = engine.tokenizer.tokenize([label.text for label in engine.labels.scan()])
    tokens = [sorted(set(encoding.ids) - set(range(len(SPECIALS)))) for encoding in encodings]
    n_tokens = 1 + max(max(ids, default=0) for ids in tokens)
    width = max(map(len, tokens))
    table = np.array([[*ids, *[n_tokens] * (width - len(ids))] for ids in tokens], np.int32)
    weights = np.ones(n_tokens + 1, np.float32)
    weights[: len(SPECIALS)] = weights[-1] = 0
    return Knowledge(
        frequencies=np.log1p(rows % 9).astype(np.float32),
        partners=np.stack([(rows + 1) % n_labels, (rows + 7) % n_labels], 1).astype(np.int32),
        partner_shares=np.full((n_labels, 2), 0.5, np.float32),
        tokens=table,
        token_weights=weights,
        label_weights=weights[table].sum(axis=1),
    )


def _stump(
    name: str, threshold: float, low: float, high: float, missing_is_low: bool
) -> dict[str, Any]:
    return {
        "split_feature": FEATURES.index(name),
        "threshold": threshold,
        "decision_type": "<=",
        "missing_type": "NaN",
        "default_left": missing_is_low,
        "left_child": {"leaf_value": low},
        "right_child": {"leaf_value": high},
    }
