"""A real bundle of a few kilobytes: what the service opens in tests, sealed like any other.

`write_tiny_bundle(folder)` needs onnx, tokenizers and FAISS, no network and no training: the
encoder is the unit-length mean of fixed word vectors, and a label's vector is that of its text.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from service.bundle.manifest import MANIFEST, SIGNATURES, bundle_id_of
from service.bundle.verify import hash_file
from service.core.encoding.text import NORMALISER, NORMALISER_VERSION
from service.core.engine import Engine
from service.core.labels.item_filter import ITEMS_FILE, ROWS_FILE, STARTS_FILE, write_item_filter
from service.core.labels.labels import Label, write_labels
from service.core.types import Query

DIM = 16
MAX_TOKENS = 32
WORDS = tuple(
    word
    for line in (
        "whale sea ship captain ocean storm island harbour sailor voyage rome empire history war",
        "king queen castle garden flower rose tree forest bird song music opera dance poem letter",
        "novel love marriage family child school science star planet moon light",
    )
    for word in line.split()
)
N_LABELS = 50
N_MEMORY = 40
GOLDEN_QUERIES = ("the white whale", "history of rome", "star and moon", "a rose garden", "zzz")
RECIPROCAL = {"P1": (3, 0, 7), "P2": (5,), "L004": (9,)}
"""Item to label rows beside its own: points that are no label, and a label that is a point."""
SPECIALS = ["[PAD]", "[UNK]", "[CLS]"]


def write_tiny_bundle(
    folder: Path, *, kind: str = "hnsw", calibrated: bool = True, memory: bool = False
) -> Path:
    """Seal a bundle into `folder` (created) and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    vectors = _word_vectors()
    _write_encoder(folder / "encoder.onnx", vectors)
    _write_tokenizer(folder / "tokenizer.json")
    labels = _labels()
    write_labels(folder, labels)
    _write_index(folder / f"index.{kind}.faiss", kind, _label_vectors(labels, vectors))
    if memory:
        _write_memory(folder, kind, vectors)
    if calibrated:
        knots = {"scores": [-1.0, 0.0, 1.0], "probabilities": [0.0, 0.1, 0.95]}
        (folder / "calibration.json").write_text(json.dumps(knots))
    (folder / "MODEL_CARD.md").write_text("# Tiny\n\nSynthetic; for tests only.\n")
    manifest = tiny_manifest(kind, calibrated, memory)
    seal(folder, manifest)
    engine = Engine.open(folder, device="cpu")
    seal(folder, manifest | {"golden": golden_of(engine)})
    return folder


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json with the true hashes of everything in the folder."""
    files = {
        path.name: hash_file(path).model_dump()
        for path in sorted(folder.iterdir())
        if path.name not in (MANIFEST, SIGNATURES)
    }
    manifest = {**manifest, "files": files}
    manifest["bundle_id"] = bundle_id_of(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def write_filtered_bundle(
    source: Path, folder: Path, reciprocal: Mapping[str, Sequence[int]] = RECIPROCAL
) -> Path:
    """Copy a sealed tiny bundle, add a filter of its labels and of these items, seal it again."""
    shutil.copytree(source, folder)
    item_ids = [f"L{row:03d}" for row in range(N_LABELS)]
    rows = list(range(N_LABELS))
    for item_id, others in reciprocal.items():
        item_ids += [item_id] * len(others)
        rows += others
    n_items, n_pairs = write_item_filter(folder, item_ids, np.array(rows))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["filter"] = {
        "files": [ITEMS_FILE, STARTS_FILE, ROWS_FILE],
        "own_item": True,
        "n_items": n_items,
        "n_pairs": n_pairs,
    }
    seal(folder, manifest)
    return folder


def _word_vectors() -> np.ndarray:
    rng = np.random.default_rng(7)
    vectors = rng.standard_normal((len(SPECIALS) + len(WORDS), DIM)).astype(np.float32)
    vectors[: len(SPECIALS)] *= 0.05  # so that words decide, and yet no text has length zero
    return vectors


def _labels() -> list[Label]:
    pairs = [(WORDS[i % len(WORDS)], WORDS[(3 * i + 1) % len(WORDS)]) for i in range(N_LABELS)]
    return [
        Label(f"L{i:03d}", f"{first} {second}", {"shelf": i % 7} if i % 2 else {})
        for i, (first, second) in enumerate(pairs)
    ]


def _label_vectors(labels: list[Label], vectors: np.ndarray) -> np.ndarray:
    rows = {word: vectors[len(SPECIALS) + i] for i, word in enumerate(WORDS)}
    means = np.stack([np.mean([rows[w] for w in label.text.split()], axis=0) for label in labels])
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def _write_encoder(path: Path, vectors: np.ndarray) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["tokens", "mask3"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "middle"], ["total"], keepdims=0),
        helper.make_node("LpNormalization", ["total"], ["embedding"], axis=1, p=2),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", DIM])
    constants = [
        numpy_helper.from_array(vectors, "table"),
        numpy_helper.from_array(np.array([2]), "last"),
        numpy_helper.from_array(np.array([1]), "middle"),
    ]
    graph = helper.make_graph(nodes, "tiny", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _write_tokenizer(path: Path) -> None:
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", vocabulary["[CLS]"])]
    )
    tokenizer.save(str(path))


def _write_index(path: Path, kind: str, vectors: np.ndarray) -> None:
    if kind == "flat":
        index = faiss.IndexFlatIP(DIM)
    else:
        index = faiss.IndexHNSWFlat(DIM, 8, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 64
    index.add(vectors)
    faiss.write_index(index, str(path))


def _write_memory(folder: Path, kind: str, vectors: np.ndarray) -> None:
    """Queries of two words, with one or two labels each."""
    first, second = np.arange(N_MEMORY), (5 * np.arange(N_MEMORY) + 2) % len(WORDS)
    means = vectors[len(SPECIALS) + first] + vectors[len(SPECIALS) + second]
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    _write_index(folder / "memory.faiss", kind, means)
    offsets = np.cumsum([0, *(1 + row % 2 for row in range(N_MEMORY))])
    np.save(folder / "memory.offsets.npy", offsets.astype(np.int64))
    labels = (7 * np.arange(offsets[-1]) + 3) % N_LABELS
    np.save(folder / "memory.labels.npy", labels.astype(np.int32))
    np.save(folder / "memory.values.npy", np.ones(offsets[-1], np.float32))


def golden_of(engine: Engine) -> list[dict[str, Any]]:
    """The golden queries with the engine's answers, as a manifest holds them."""
    effort = engine.manifest.defaults.effort
    queries = [Query(text, 5, effort) for text in GOLDEN_QUERIES]
    return [
        {
            "query": query.text,
            "label_ids": [engine.labels[int(row)].label_id for row in answer.rows],
            "scores": [float(score) for score in answer.scores],
        }
        for query, answer in zip(queries, engine.predict(queries).predictions, strict=True)
    ]


def tiny_manifest(
    kind: str = "hnsw", calibrated: bool = True, memory: bool = False
) -> dict[str, Any]:
    """The manifest before sealing: no hashes, no id, no golden queries."""
    ef_search = {"fast": 8, "balanced": 24, "thorough": 48}
    params: dict[str, dict[str, int]] = {
        name: {"ef_search": ef} if kind == "hnsw" else {} for name, ef in ef_search.items()
    }
    if memory and kind == "hnsw":
        params = {name: point | {"memory_ef_search": 32} for name, point in params.items()}
    params["exact"] = {}
    with_memory = {"memory": _memory_info(kind)} if memory else {}
    return with_memory | {
        "schema_version": 1,
        "name": "tiny",
        "created": "2026-01-01T00:00:00Z",
        "code": {"version": "0.1.0", "revision": "test"},
        "data": {"name": "synthetic", "sha256": "0" * 64, "counts": {"labels": N_LABELS}},
        "config": {"method": "none"},
        "text": {"normaliser": NORMALISER, "version": NORMALISER_VERSION},
        "tokenizer": {"file": "tokenizer.json", "max_tokens": MAX_TOKENS},
        "encoder": {
            "file": "encoder.onnx",
            "variants": {"fp32": "encoder.onnx"},
            "dim": DIM,
            "inputs": ["input_ids", "attention_mask"],
            "opset": 17,
        },
        "index": {
            "kind": kind,
            "files": [f"index.{kind}.faiss"],
            "metric": "inner_product",
            "params": {"m": 8},
            "n_rows": N_LABELS,
        },
        "labels": {"files": ["labels.jsonl", "labels.offsets.npy"], "n_labels": N_LABELS},
        "calibration": {
            "file": "calibration.json" if calibrated else None,
            "kind": "piecewise" if calibrated else "none",
            "ece_before": 0.2 if calibrated else None,
            "ece_after": 0.05 if calibrated else None,
        },
        "defaults": {"k": 10, "effort": "balanced"},
        "operating_points": [
            {
                "name": name,
                "params": point,
                "recall_at_10": 1.0,
                "p_at_1": 50.0,
                "p_at_5": 30.0,
                "search_us_p50": 10.0,
                "search_us_p99": 20.0,
                "machine": "test",
            }
            for name, point in params.items()
        ],
        "quality": {
            "split": "test",
            "n_queries": 5,
            "effort": "balanced",
            "propensity_a": 0.55,
            "propensity_b": 1.5,
            "metrics": {"p@1": 50.0},
        },
        "parity": {"max_abs_diff": 1e-6, "top1_agreement": 1.0, "n_queries": 5},
        "golden": [],
    }


def _memory_info(kind: str) -> dict[str, Any]:
    arrays = [f"memory.{name}.npy" for name in ("offsets", "labels", "values")]
    return {
        "kind": kind,
        "files": ["memory.faiss", *arrays],
        "n_rows": N_MEMORY,
        "params": {"m": 8},
        "neighbours": 6,
        "depth": 20,
        "weight": 0.4,
        "temperature": 0.1,
        "logit_bias": -0.5,
    }


if __name__ == "__main__":
    write_tiny_bundle(Path(sys.argv[1]))
