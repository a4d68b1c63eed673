"""Reranker: gives the first labels of a search new scores, by small trees over their features.

The candidates are always the first labels of all, whatever an answer leaves out. So a filter
changes no score, and an answer is a part of one order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from service.bundle.claims import RERANK_DEPTH
from service.bundle.manifest import Manifest
from service.core.calibration import Calibration, open_calibration
from service.core.encoding.encoder import open_session
from service.core.encoding.onnx_check import check_onnx
from service.core.index.memory import Memory
from service.core.rerank.features import FEATURES, Batch, Neighbours, Tokens, feature_matrix
from service.core.rerank.knowledge import Knowledge, open_knowledge
from service.core.types import Float32Rows, Hits
from service.errors import BundleMismatch

GRAPH_INPUT: Final = "features"
GRAPH_OUTPUT: Final = "scores"
_LEAST_PROBABILITY: Final = 1e-7
"""As in `service.core.calibration`: a probability's logit stays finite."""


class Trees(Protocol):
    """Maps features (n, width) float32, with NaN for what is missing, to scores (n,)."""

    def __call__(self, matrix: Float32Rows) -> Float32Rows:
        """The score of each row."""
        ...


@dataclass(frozen=True, slots=True)
class Reranker:
    """The trees and what they read. Many threads may call it at once.

    `features` are the trees', in order. `depths` maps an effort to the number of candidates that it
    re-orders; it lacks efforts that re-order none. `probable` says that the index's scores are
    probabilities. `calibration` maps the new scores.
    """

    trees: Trees
    features: Sequence[str]
    depths: Mapping[str, int]
    knowledge: Knowledge
    memory: Memory | None
    probable: bool
    calibration: Calibration

    def rerank(
        self,
        hits: Hits,
        head: Hits,
        embeddings: Float32Rows,
        tokens: Tokens | None,
        effort: str,
    ) -> tuple[Hits, Hits]:
        """Both `hits` and `head` in the new order, with the new scores.

        `hits` are what an answer may hold, `head` the first labels of all, of which the first ones
        are the candidates. Where nothing is left out, the two are one.
        """
        depth = self.depths[effort]
        candidates = Hits(head.rows[:, :depth], head.scores[:, :depth])
        scores = self.score(candidates, embeddings, tokens, effort)
        first = reorder(head, candidates, scores)
        return first if hits is head else reorder(hits, candidates, scores), first

    def score(
        self, head: Hits, embeddings: Float32Rows, tokens: Tokens | None, effort: str
    ) -> Float32Rows:
        """New scores (n, m) of the first labels `head` of each query.

        `embeddings` (n, dim) and `tokens` are the queries'.
        """
        if head.rows.size == 0:
            return head.scores
        batch = self._batch(head, embeddings, tokens, effort)
        return self.trees(feature_matrix(self.features, batch)).reshape(head.rows.shape)

    def contributions(
        self, head: Hits, embeddings: Float32Rows, tokens: Tokens | None, effort: str
    ) -> list[dict[int, dict[str, float]]]:
        """For each query, by row of a candidate: the score minus the one without each feature.

        Without it means that the trees see it as missing. Effects of features that work together
        therefore do not add up to the score.
        """
        matrix = feature_matrix(self.features, self._batch(head, embeddings, tokens, effort))
        scores = self.trees(matrix)
        changes = np.empty_like(matrix)
        for column in range(len(self.features)):
            without = matrix.copy()
            without[:, column] = np.nan
            changes[:, column] = scores - self.trees(without)
        moved = [dict(zip(self.features, change, strict=True)) for change in changes.tolist()]
        m = head.rows.shape[1]
        return [
            dict(zip(rows, moved[i * m : (i + 1) * m], strict=True))
            for i, rows in enumerate(head.rows.tolist())
        ]

    def _batch(
        self, head: Hits, embeddings: Float32Rows, tokens: Tokens | None, effort: str
    ) -> Batch:
        neighbours = None
        if (memory := self.memory) is not None:
            recalled = memory.recall(embeddings, effort)
            neighbours = Neighbours(recalled, memory.labels, memory.temperature)
        logits = log_odds(head.scores) if self.probable else head.scores
        return Batch(head.rows, logits, self.knowledge, tokens, neighbours)


def reorder(hits: Hits, candidates: Hits, scores: Float32Rows) -> Hits:
    """The labels `hits` (n, k) in the order of the new scores, best first.

    `scores` (n, m) are those of the `candidates` (n, m). Labels beyond these follow in the index's
    order, each as far below the lowest new score as its score lies below the last candidate's.

    >>> ten = Hits(np.array([[7, 3, 5]]), np.float32([[2, 1, 0.5]]))
    >>> two = Hits(ten.rows[:, :2], ten.scores[:, :2])
    >>> reorder(ten, two, np.float32([[-1, 4]]))
    Hits(rows=array([[3, 7, 5]]), scores=array([[ 4. , -1. , -1.5]], dtype=float32))
    """
    if hits.rows.size == 0:
        return hits
    if hits.rows.shape == candidates.rows.shape and np.array_equal(hits.rows, candidates.rows):
        new = scores
    else:
        beyond = np.maximum(candidates.scores[:, -1:] - hits.scores, 0.0)
        new = scores.min(axis=1, keepdims=True) - beyond
        is_there = hits.rows[:, :, None] == candidates.rows[:, None, :]  # (n, k, m)
        own = np.take_along_axis(scores, is_there.argmax(axis=2), 1)
        new = np.where(is_there.any(axis=2), own, new)
    order = (-new).argsort(axis=1, kind="stable")
    queries = np.arange(len(order))[:, None]
    return Hits(hits.rows[queries, order], new[queries, order])


def log_odds(probabilities: Float32Rows) -> Float32Rows:
    """The logits of probabilities, finite at 0 and 1.

    >>> log_odds(np.float32([[0.5, 0.0]])).round(1)
    array([[  0. , -16.1]], dtype=float32)
    """
    likely = np.clip(probabilities.astype(np.float64), _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return (np.log(likely) - np.log1p(-likely)).astype(np.float32)


def open_reranker(folder: Path, manifest: Manifest, memory: Memory | None) -> Reranker | None:
    """Open the re-ranker that the manifest names, None without one.

    Raises BundleMismatch, ManifestInvalid.
    """
    info = manifest.rerank
    if info is None:
        return None
    unknown = [name for name in info.features if name not in FEATURES]
    if unknown:
        raise BundleMismatch(
            f"{folder}: rerank.features has {unknown[0]!r}, this code has {', '.join(FEATURES)}"
        )
    depths = {point.name: point.params.get(RERANK_DEPTH, 0) for point in manifest.operating_points}
    return Reranker(
        OnnxTrees(folder / info.graph, len(info.features)),
        tuple(info.features),
        {name: depth for name, depth in depths.items() if depth},
        open_knowledge(folder, manifest.labels.n_labels),
        memory,
        manifest.index.metric == "probability",
        open_calibration(folder, info.calibration.file, "logit"),
    )


class OnnxTrees:
    """A graph of trees in ONNX Runtime, on the CPU and on the thread that calls."""

    def __init__(self, path: Path, n_features: int) -> None:
        """Open it; raises ManifestInvalid, and BundleMismatch for another number of features."""
        check_onnx(path)
        self._session = open_session(path, "cpu", 1)
        shapes = [entry.shape[1:] for entry in self._session.get_inputs()]
        names = [entry.name for entry in self._session.get_inputs() + self._session.get_outputs()]
        if names != [GRAPH_INPUT, GRAPH_OUTPUT] or shapes != [[n_features]]:
            raise BundleMismatch(
                f"{path} maps {names} of shapes {shapes}, expected {GRAPH_INPUT} of "
                f"{n_features} columns to {GRAPH_OUTPUT}"
            )

    def __call__(self, matrix: Float32Rows) -> Float32Rows:
        """The score of each row; raises RuntimeError for scores that are not finite."""
        rows: Any = self._session.run([GRAPH_OUTPUT], {GRAPH_INPUT: matrix})[0]
        if rows.shape != (len(matrix), 1) or not np.isfinite(rows).all():
            raise RuntimeError(f"the re-ranker gave {rows.shape} or values that are not finite")
        return np.asarray(rows[:, 0])
