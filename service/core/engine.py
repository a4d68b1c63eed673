"""Engine: an open bundle that answers batches. Web-free and environment-free.

`Engine.open` verifies, opens, warms and replays the golden queries; only then does a caller get an
object. Search, evaluation and the release gate all go through `predict`, so what is measured is
what is served. It holds no queue: that is `service.core.batching.batcher`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.bundle.manifest import Golden, Manifest
from service.bundle.verify import resolve, verify
from service.core.calibration import Calibration, RawScores, load_calibration
from service.core.catalogue.label_rules import LabelRules, RuledLabels
from service.core.catalogue.live import LiveCatalogue
from service.core.catalogue.store import ChangeStore, store_path
from service.core.encoding.encoder import DEFAULT_GPU, Encoder, open_encoder
from service.core.encoding.providers import GpuOptions
from service.core.encoding.tokenizer import Tokenizer, length_sorted_chunks, pad
from service.core.index.augmented import AugmentedIndex
from service.core.index.protocol import LabelIndex
from service.core.labels.filtered_search import resolve_filter, search_filtered
from service.core.labels.item_filter import NO_ROWS, ItemFilter
from service.core.labels.labels import Label, LabelStore
from service.core.parts import check_text, open_index, open_item_filter, raw_score_kind
from service.core.types import (
    FilterPlan,
    Float32Rows,
    Hits,
    LabelFilter,
    PredictedBatch,
    Prediction,
    Query,
    StageTimings,
)
from service.errors import BundleError, BundleMismatch, GoldenMismatch

GOLDEN_TOLERANCE: Final = 1e-3
"""Served scores may differ by this much between processors; a wrong file differs by far more.

What a variant of lower precision may differ by on top is measured at sealing (`golden_drift`).
"""


@dataclass(frozen=True, slots=True)
class Engine:
    """The parts of one bundle, wired. Safe to call from many threads at once."""

    manifest: Manifest
    tokenizer: Tokenizer
    encoder: Encoder
    index: LabelIndex
    catalogue: LiveCatalogue
    calibration: Calibration
    labels: LabelStore
    max_batch_tokens: int
    variant: str
    folder: Path | None = None
    item_filter: ItemFilter | None = None
    rules: RuledLabels | None = None
    clock: Callable[[], float] = time.perf_counter

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        device: str = "auto",
        intra_op_threads: int = 1,
        max_batch_tokens: int = 16384,
        variant: str | None = None,
        gpu: GpuOptions = DEFAULT_GPU,
    ) -> "Engine":
        """Verify and open a bundle (or a folder of bundles), warm it, replay its golden queries.

        `max_batch_tokens` bounds the padded tokens of one encoder call; `variant` is a precision of
        the encoder, None for the bundle's own choice. Raises BundleError, DeviceUnavailable.
        """
        folder = resolve(path).resolve()
        manifest = verify(folder)
        chosen = manifest.encoder.served if variant is None else variant
        check_text(folder, manifest)
        encoder = open_encoder(folder, manifest, chosen, device, intra_op_threads, gpu)
        engine = cls._wire(folder, manifest, chosen, encoder, max_batch_tokens)
        try:
            engine.warm_up()
            engine.replay_golden()
        except BundleError:
            raise
        except Exception as exc:  # parts that fit on paper and yet cannot work together
            raise BundleMismatch(f"{folder} opens but cannot answer: {exc}") from exc
        return engine

    def with_changes(self, state_dir: Path) -> "Engine":
        """The same parts with the changes of labels that a folder keeps, and further ones.

        Not before a fork: an open SQLite file must not cross one. Raises CatalogueError.
        """
        name = self.manifest.name
        return self.with_store(ChangeStore(store_path(state_dir, name), name))

    def with_store(self, store: ChangeStore) -> "Engine":
        """The same parts with the changes that a store holds; raises CatalogueError."""
        if self.folder is None or self.rules is not None:
            raise ValueError("changes need a folder, and come before rules")
        catalogue = LiveCatalogue.of(
            self.folder,
            self.manifest,
            self.index,
            self.labels,
            self.tokenizer,
            self.encoder,
            variant=self.variant,
            max_batch_tokens=self.max_batch_tokens,
            store=store,
        )
        return replace(self, catalogue=catalogue)

    def with_rules(self, rules: LabelRules) -> "Engine":
        """The same parts, answering only with labels that the rules let through.

        After changes, which the rules hold for too. Raises SettingsInvalid.
        """
        return replace(self, rules=RuledLabels(rules, self.catalogue))

    @classmethod
    def _wire(
        cls,
        folder: Path,
        manifest: Manifest,
        variant: str,
        encoder: Encoder,
        max_batch_tokens: int,
    ) -> "Engine":
        labels = LabelStore(folder)
        if len(labels) != manifest.labels.n_labels:
            raise BundleMismatch(
                f"{folder} holds {len(labels)} labels, the manifest says {manifest.labels.n_labels}"
            )
        calibration = manifest.calibration.file
        index = open_index(folder, manifest)
        tokenizer = Tokenizer(folder / manifest.tokenizer.file, manifest.tokenizer.max_tokens)
        return cls(
            manifest=manifest,
            tokenizer=tokenizer,
            encoder=encoder,
            index=index,
            catalogue=LiveCatalogue.of(
                folder,
                manifest,
                index,
                labels,
                tokenizer,
                encoder,
                variant=variant,
                max_batch_tokens=max_batch_tokens,
            ),
            calibration=(
                load_calibration(folder / calibration)
                if calibration
                else RawScores(raw_score_kind(manifest))
            ),
            labels=labels,
            max_batch_tokens=max_batch_tokens,
            variant=variant,
            folder=folder,
            item_filter=open_item_filter(folder, manifest),
        )

    @property
    def efforts(self) -> tuple[str, ...]:
        """Names that a query's `effort` may have."""
        return tuple(point.name for point in self.manifest.operating_points)

    @property
    def raw_score_kind(self) -> str:
        """What a score is before calibration."""
        return raw_score_kind(self.manifest)

    @property
    def catalogue_seq(self) -> int:
        """Rises with every change of a label."""
        return self.catalogue.seq

    def find_label(self, label_id: str) -> tuple[Label, bool] | None:
        """A label by its id, and whether it was added or changed since the bundle was sealed."""
        row, snapshot = self.catalogue.row_of(label_id), self.catalogue.snapshot
        if row is None:
            return None
        changed = snapshot is not None and (row >= snapshot.n_base or row in snapshot.overrides)
        return self.catalogue.label(row), changed

    def neighbours(self, embeddings: Float32Rows, effort: str) -> list[list[dict[str, Any]]] | None:
        """The training queries nearest to each embedding (n, dim), with their labels' ids.

        None where the bundle keeps no training queries.
        """
        index = self.index
        if not isinstance(index, AugmentedIndex):
            return None
        recalled = index.recall(embeddings, effort)
        return [
            [
                {
                    "similarity": round(float(similarity), 6),
                    "labels": [
                        self.catalogue.label(int(row)).label_id
                        for row in self._shown(index.labels_of(int(j)))
                    ],
                }
                for j, similarity in zip(rows, similarities, strict=True)
            ]
            for rows, similarities in zip(recalled.rows, recalled.scores, strict=True)
        ]

    def search(self, embeddings: Float32Rows, k: int, effort: str) -> Hits:
        """Top k labels of each embedding (n, dim), as a query without a filter gets them."""
        return self._hits(embeddings, k, effort, None, None)[0]

    def predict(self, queries: Sequence[Query]) -> PredictedBatch:
        """Answer a batch; an answer does not depend on what else is in the batch.

        A query with an `item_id` that filters nothing gets the answer of one without. Raises
        ValueError where an `item_id` meets a bundle without an item filter.
        """
        started = self.clock()
        embeddings = np.empty((len(queries), self.encoder.dim), np.float32)
        truncated = np.zeros(len(queries), np.bool_)
        texts: list[int] | range = range(len(queries))
        if any([query.vector is not None for query in queries]):
            texts = _place_vectors(queries, embeddings)
        encodings = self.tokenizer.tokenize([queries[i].text for i in texts])
        lengths = [len(encoding) for encoding in encodings]
        chunks = [
            ([texts[i] for i in chunk], pad([encodings[i] for i in chunk]))
            for chunk in length_sorted_chunks(lengths, self.max_batch_tokens)
        ]
        tokenized = self.clock()
        for chunk, batch in chunks:
            embeddings[chunk] = self.encoder.encode(batch)
            truncated[chunk] = batch.truncated
        encoded = self.clock()
        predictions = self._search(
            queries, embeddings, truncated, dict(zip(texts, lengths, strict=True))
        )
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
        golden = self.manifest.golden
        measured = self.manifest.encoder.measured.get(self.variant)
        allowed = GOLDEN_TOLERANCE + ((measured.golden_drift or 0.0) if measured else 0.0)
        for item, drift in zip(golden, self.golden_drifts(golden), strict=True):
            if drift > allowed:
                raise GoldenMismatch(
                    f"golden query {item.query!r} with encoder variant {self.variant}: served "
                    f"scores moved by {drift:.2g}, {allowed:.2g} is allowed; recorded were "
                    f"{item.label_ids}: the parts of this bundle do not belong together"
                )

    def golden_drifts(self, golden: Sequence[Golden]) -> list[float]:
        """How far each answer is from the recorded one, in served score."""
        effort = self.manifest.defaults.effort
        queries = [Query(item.query, len(item.label_ids), effort) for item in golden]
        answers = self.predict(queries).predictions if queries else []
        return [
            _drift(item, {self.labels[int(row)].label_id for row in answer.rows}, answer)
            for item, answer in zip(golden, answers, strict=True)
        ]

    def _search(
        self,
        queries: Sequence[Query],
        embeddings: Float32Rows,
        truncated: "np.ndarray[tuple[int], np.dtype[np.bool_]]",
        n_tokens: Mapping[int, int],
    ) -> list[Prediction]:
        """One index search for each (depth, effort, filter); depth changes a graph search's answer.

        The depth is k, and as much more as the query's item has rows to be left out.
        """
        left_out = {
            position: self._rows_left_out(query.item_id)
            for position, query in enumerate(queries)
            if query.item_id is not None
        }
        groups: dict[tuple[int, str, LabelFilter | None, str | None], list[int]] = {}
        for position, query in enumerate(queries):
            wanted = query.label_filter
            depth = query.k
            if depth and wanted is None:
                depth += len(left_out.get(position, NO_ROWS))
            item_id = query.item_id if wanted else None
            groups.setdefault((depth, query.effort, wanted, item_id), []).append(position)
        predictions: list[Prediction | None] = [None] * len(queries)
        for (depth, effort, wanted, _), positions in groups.items():
            whole = len(groups) == 1  # nearly always: then nothing is copied
            vectors = embeddings if whole else embeddings[positions]
            hits, plan = self._hits(vectors, depth, effort, wanted, left_out.get(positions[0]))
            scores = self.calibration.apply(hits.scores)
            for i, position in enumerate(positions):
                rows, served, raw = hits.rows[i], scores[i], hits.scores[i]
                if position in left_out and plan is None:
                    kept = np.flatnonzero(~np.isin(rows, left_out[position]))[: queries[position].k]
                    rows, served, raw = rows[kept], served[kept], raw[kept]
                predictions[position] = Prediction(
                    rows,
                    served,
                    embeddings[position],
                    bool(truncated[position]),
                    raw,
                    plan,
                    n_tokens.get(position, 0),
                )
        return [prediction for prediction in predictions if prediction is not None]

    def _hits(
        self,
        vectors: Float32Rows,
        depth: int,
        effort: str,
        wanted: LabelFilter | None,
        left_out: NDArray[np.int64] | None,
    ) -> tuple[Hits, FilterPlan | None]:
        """What the index finds, under filter and rules where there are some; nothing at depth 0.

        A plan comes with a filter alone: rules are no news to who asks.
        """
        if depth == 0:
            none = (len(vectors), 0)
            return Hits(np.empty(none, np.int64), np.empty(none, np.float32)), None
        # One state of the labels from here on, whatever changes meanwhile.
        snapshot = self.catalogue.snapshot
        index = self.index if snapshot is None else snapshot
        ruled = None if self.rules is None else self.rules.rows(snapshot)
        if wanted is None:
            if ruled is None:
                return self.catalogue.search(vectors, depth, effort), None
            return search_filtered(index, vectors, depth, effort, ruled)[0], None
        rows = resolve_filter(wanted, self.catalogue)
        if left_out is not None:
            rows = rows.without(left_out)
        rows = rows.among(snapshot.lives if snapshot else lambda rows: rows < self.index.n_rows)
        if ruled is not None:
            rows = rows.within(ruled)
        return search_filtered(index, vectors, depth, effort, rows)

    def _shown(self, rows: NDArray[np.integer]) -> NDArray[np.integer]:
        """Those of the rows (n,) that the rules let anyone see."""
        return rows if self.rules is None else rows[self.rules.are_open(rows.astype(np.int64))]

    def _rows_left_out(self, item_id: str) -> NDArray[np.int64]:
        if self.item_filter is None:
            raise ValueError(f"item_id is {item_id!r}, this bundle has no item filter")
        return self.item_filter.rows_for(item_id)


def _place_vectors(queries: Sequence[Query], embeddings: Float32Rows) -> list[int]:
    """Write the vectors that queries bring into their rows; returns who still needs encoding."""
    texts = []
    for position, query in enumerate(queries):
        if query.vector is None:
            texts.append(position)
        else:
            embeddings[position] = query.vector
    return texts


def _drift(item: Golden, label_ids: set[str], answer: Prediction) -> float:
    """Largest change of a score by rank, and by how much a lost label stood above the last one.

    So labels whose scores lie closer than a tolerance may change places, also across the last one.
    """
    if len(answer.scores) != len(item.scores):
        return float("inf")
    lost = [
        score - item.scores[-1]
        for label_id, score in zip(item.label_ids, item.scores, strict=True)
        if label_id not in label_ids
    ]
    moved = np.abs(answer.scores - np.asarray(item.scores))
    return max(float(moved.max(initial=0.0)), *lost, 0.0)
