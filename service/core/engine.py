"""Engine: an open bundle that answers batches. Web-free and environment-free.

`Engine.open` verifies, opens, warms and replays the golden queries; only then does a caller get an
object. Search, evaluation and the release gate all go through `predict`, so what is measured is
what is served. It holds no queue: that is `service.core.batcher`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from service.bundle import Golden, Manifest, resolve, verify
from service.core.calibration import Calibration, RawScores, load_calibration
from service.core.encoder import Encoder, OnnxEncoder
from service.core.index.faiss_index import open_faiss
from service.core.index.protocol import LabelIndex
from service.core.labels import LabelStore
from service.core.text import NORMALISER, NORMALISER_VERSION
from service.core.tokenizer import Tokenizer, length_sorted_chunks, pad
from service.core.types import (
    Float32Rows,
    PredictedBatch,
    Prediction,
    Query,
    StageTimings,
)
from service.errors import BundleMismatch, GoldenMismatch

GOLDEN_TOLERANCE: Final = 1e-3
"""Served scores may differ by this much between processors; a wrong file differs by far more."""


@dataclass(frozen=True, slots=True)
class Engine:
    """The parts of one bundle, wired. Safe to call from many threads at once."""

    manifest: Manifest
    tokenizer: Tokenizer
    encoder: Encoder
    index: LabelIndex
    calibration: Calibration
    labels: LabelStore
    max_batch_tokens: int
    clock: Callable[[], float] = time.perf_counter

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        device: str = "auto",
        intra_op_threads: int = 1,
        max_batch_tokens: int = 16384,
    ) -> "Engine":
        """Verify and open a bundle (or a folder of bundles), warm it, replay its golden queries.

        `max_batch_tokens` bounds the padded tokens of one encoder call. Raises BundleError,
        DeviceUnavailable.
        """
        folder = resolve(path)
        engine = cls._wire(folder, verify(folder), device, intra_op_threads, max_batch_tokens)
        engine.warm_up()
        engine.replay_golden()
        return engine

    @classmethod
    def _wire(
        cls, folder: Path, manifest: Manifest, device: str, threads: int, max_batch_tokens: int
    ) -> "Engine":
        text = manifest.text
        if (text.normaliser, text.version) != (NORMALISER, NORMALISER_VERSION):
            raise BundleMismatch(
                f"{folder}: trained with text cleaning {text.normaliser} {text.version}, this code "
                f"has {NORMALISER} {NORMALISER_VERSION}: serve it with the Astrolabe that sealed it"
            )
        encoder = OnnxEncoder(folder / manifest.encoder.file, device, threads)
        if encoder.dim != manifest.encoder.dim:
            raise BundleMismatch(
                f"{folder / manifest.encoder.file} gives vectors of {encoder.dim}, "
                f"the manifest says encoder.dim {manifest.encoder.dim}"
            )
        labels = LabelStore(folder)
        if len(labels) != manifest.labels.n_labels:
            raise BundleMismatch(
                f"{folder} holds {len(labels)} labels, the manifest says {manifest.labels.n_labels}"
            )
        calibration = manifest.calibration.file
        return cls(
            manifest=manifest,
            tokenizer=Tokenizer(folder / manifest.tokenizer.file, manifest.tokenizer.max_tokens),
            encoder=encoder,
            index=open_index(folder, manifest),
            calibration=load_calibration(folder / calibration) if calibration else RawScores(),
            labels=labels,
            max_batch_tokens=max_batch_tokens,
        )

    @property
    def efforts(self) -> tuple[str, ...]:
        """Names that a query's `effort` may have."""
        return tuple(point.name for point in self.manifest.operating_points)

    def predict(self, queries: Sequence[Query]) -> PredictedBatch:
        """Answer a batch; an answer does not depend on what else is in the batch."""
        started = self.clock()
        encodings = self.tokenizer.tokenize([query.text for query in queries])
        lengths = [len(encoding) for encoding in encodings]
        chunks = [
            (chunk, pad([encodings[i] for i in chunk]))
            for chunk in length_sorted_chunks(lengths, self.max_batch_tokens)
        ]
        tokenized = self.clock()
        embeddings = np.empty((len(queries), self.encoder.dim), np.float32)
        truncated = np.zeros(len(queries), np.bool_)
        for chunk, batch in chunks:
            embeddings[chunk] = self.encoder.encode(batch)
            truncated[chunk] = batch.truncated
        encoded = self.clock()
        predictions = self._search(queries, embeddings, truncated)
        timings = StageTimings(
            tokenize_s=tokenized - started,
            encode_s=encoded - tokenized,
            search_s=self.clock() - encoded,
            n_tokens=sum(lengths),
            n_padded_tokens=sum(batch.ids.size for _, batch in chunks),
        )
        return PredictedBatch(predictions, timings)

    def warm_up(self) -> None:
        """Run every effort once on a batch of one and of several, so that no user pays for it."""
        for effort in self.efforts:
            self.predict([Query("warm up", self.manifest.defaults.k, effort)])
            self.predict([Query("warm up " * n, 1, effort) for n in range(1, 9)])

    def replay_golden(self) -> None:
        """Answer the recorded queries again; raises GoldenMismatch where an answer moved."""
        defaults = self.manifest.defaults
        golden = self.manifest.golden
        queries = [Query(item.query, len(item.label_ids), defaults.effort) for item in golden]
        answers = self.predict(queries).predictions if queries else []
        for item, answer in zip(golden, answers, strict=True):
            _check_golden(item, [self.labels[int(row)].label_id for row in answer.rows], answer)

    def _search(
        self,
        queries: Sequence[Query],
        embeddings: Float32Rows,
        truncated: "np.ndarray[tuple[int], np.dtype[np.bool_]]",
    ) -> list[Prediction]:
        """One index search for each (k, effort) asked for; k changes a graph search's answer."""
        groups: dict[tuple[int, str], list[int]] = {}
        for position, query in enumerate(queries):
            groups.setdefault((query.k, query.effort), []).append(position)
        predictions: list[Prediction | None] = [None] * len(queries)
        for (k, effort), positions in groups.items():
            whole = len(groups) == 1  # nearly always: then nothing is copied
            hits = self.index.search(embeddings if whole else embeddings[positions], k, effort)
            scores = self.calibration.apply(hits.scores)
            for i, position in enumerate(positions):
                predictions[position] = Prediction(
                    hits.rows[i], scores[i], embeddings[position], bool(truncated[position])
                )
        return [prediction for prediction in predictions if prediction is not None]


def open_index(folder: Path, manifest: Manifest) -> LabelIndex:
    """The index of the kind that the manifest names; raises BundleMismatch."""
    efforts = {point.name: point.params for point in manifest.operating_points}
    spec = manifest.index
    if spec.kind in ("hnsw", "flat"):
        path = folder / spec.files[0]
        return open_faiss(path, manifest.encoder.dim, spec.n_rows, efforts)
    raise BundleMismatch(f"{folder}: index.kind is {spec.kind!r}, this code has hnsw and flat")


def _check_golden(item: Golden, label_ids: list[str], answer: Prediction) -> None:
    scores = answer.scores
    expected = np.asarray(item.scores)
    drift = float(np.abs(scores - expected).max(initial=0.0)) if len(scores) == len(expected) else 1
    # Labels whose scores tie within the tolerance may change places, also across the last place.
    settled = {
        label_id
        for label_id, score in zip(item.label_ids, item.scores, strict=True)
        if score > item.scores[-1] + GOLDEN_TOLERANCE
    }
    if drift > GOLDEN_TOLERANCE or not settled <= set(label_ids):
        raise GoldenMismatch(
            f"golden query {item.query!r} gives {label_ids} (largest score change {drift:.2g}), "
            f"recorded were {item.label_ids}: the parts of this bundle do not belong together"
        )
