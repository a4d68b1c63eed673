"""Engine: an open bundle that answers batches of queries.

`Engine.open` verifies and opens a bundle, warms it and replays its golden queries before it returns
an engine. The service, the evaluation and the release gate all call `predict`, so they measure the
code that serves. The queue of requests is in `service.core.batching.batcher`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.bundle.manifest import Golden, Manifest
from service.bundle.open_files import OpenFiles, stamps
from service.bundle.signatures import BundleKeys
from service.bundle.verify import resolve, verify
from service.core.calibration import Calibration, open_calibration
from service.core.catalogue.label_rules import LabelRules, RuledLabels
from service.core.catalogue.label_vectors import has_vectors
from service.core.catalogue.live import LiveCatalogue
from service.core.catalogue.sqlite_store import SqliteStore, store_path
from service.core.catalogue.store import ChangeStore
from service.core.diversity import DIVERSITY_DEPTH
from service.core.encoding.encoder import DEFAULT_GPU, Encoder, open_encoder
from service.core.encoding.field_tokenizer import AnyTokenizer, open_tokenizer
from service.core.encoding.providers import GpuOptions
from service.core.encoding.query_texts import QueryTexts
from service.core.encoding.tokenizer import length_sorted_chunks, pad
from service.core.golden import drift_of
from service.core.index.memory import Memory
from service.core.index.protocol import LabelIndex
from service.core.labels.item_filter import NO_ROWS, ItemFilter
from service.core.labels.label_directory import LabelDirectory
from service.core.labels.labels import Label, LabelStore
from service.core.labels.moves import MOVED_DEPTH
from service.core.parts import check_text, memory_of, open_index, open_item_filter, raw_score_kind
from service.core.ranking import Ranker
from service.core.rerank.features import Tokens
from service.core.rerank.reranker import Reranker, open_reranker
from service.core.types import (
    Float32Rows,
    Hits,
    LabelFilter,
    PredictedBatch,
    Prediction,
    Query,
    StageTimings,
    TokenBatch,
)
from service.errors import BundleError, BundleMismatch, GoldenMismatch

GOLDEN_TOLERANCE: Final = 1e-3
"""Most that a served score may differ from the recorded one, because processors round differently.

A choice: a wrong file moves scores by far more. The further difference of a variant of lower
precision is measured at sealing (`golden_drift`).
"""


@dataclass(frozen=True, slots=True)
class Engine:
    """The open parts of one bundle. Many threads may call it at once.

    `files` watches the bundle's files. `rules` are the operator's label rules, None if there are
    none.
    """

    manifest: Manifest
    tokenizer: AnyTokenizer
    encoder: Encoder
    index: LabelIndex
    catalogue: LiveCatalogue
    calibration: Calibration
    labels: LabelStore
    max_batch_tokens: int
    variant: str
    folder: Path | None = None
    item_filter: ItemFilter | None = None
    memory: Memory | None = None
    reranker: Reranker | None = None
    files: OpenFiles | None = None
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
        keys: BundleKeys | None = None,
    ) -> "Engine":
        """Verify and open a bundle, warm it up and replay its golden queries.

        `path` is a bundle or a folder of bundles with a pointer. `max_batch_tokens` is the most
        padded tokens of one encoder call. `variant` is a precision of the encoder, None for the
        bundle's own choice. `keys` are those that must have signed the bundle, None for
        no such demand. Raises BundleError, DeviceUnavailable.
        """
        folder = resolve(path).resolve()
        verified = stamps(folder)
        manifest = verify(folder, keys)
        variant = manifest.encoder.served if variant is None else variant
        check_text(folder, manifest)
        encoder = open_encoder(folder, manifest, variant, device, intra_op_threads, gpu)
        engine = cls._wire(folder, manifest, variant, encoder, max_batch_tokens)
        engine = replace(engine, files=OpenFiles(folder, manifest.files, verified))
        try:
            engine.warm_up()
            engine.replay_golden()
        except BundleError:
            raise
        except Exception as exc:  # the parts match the manifest but do not work together
            raise BundleMismatch(f"{folder} opens but cannot answer: {exc}") from exc
        return engine

    def with_changes(self, state_dir: Path) -> "Engine":
        """An engine that also serves, and accepts, the label changes stored in `state_dir`.

        Call it after a fork and not before, because an open SQLite file must not cross one. Raises
        CatalogueError.
        """
        name = self.manifest.name
        return self.with_store(SqliteStore(store_path(state_dir, name), name))

    def with_store(self, store: ChangeStore) -> "Engine":
        """An engine that also serves the label changes in `store`.

        Raises CatalogueError, and ValueError for an engine without a folder or with rules already.
        """
        if self.folder is None or self.rules is not None:
            raise ValueError("changes need a folder, and come before rules")
        catalogue = LiveCatalogue.of(
            self.manifest,
            self.index,
            self.labels,
            self.catalogue.directory,
            self.tokenizer,
            self.encoder,
            variant=self.variant,
            max_batch_tokens=self.max_batch_tokens,
            store=store,
        )
        return replace(self, catalogue=catalogue)

    def with_rules(self, rules: LabelRules) -> "Engine":
        """An engine that answers only with labels that the rules allow.

        Call it after `with_changes`, so that the rules apply to those labels too. Raises
        SettingsInvalid.
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
        index = open_index(folder, manifest)
        memory = memory_of(folder, manifest, index)
        spec = manifest.tokenizer
        tokenizer = open_tokenizer(folder / spec.file, spec.limits, spec.query_prefix)
        return cls(
            manifest=manifest,
            tokenizer=tokenizer,
            encoder=encoder,
            index=index,
            catalogue=LiveCatalogue.of(
                manifest,
                index,
                labels,
                LabelDirectory.open(folder, labels),
                tokenizer,
                encoder,
                variant=variant,
                max_batch_tokens=max_batch_tokens,
            ),
            calibration=open_calibration(
                folder, manifest.calibration.file, raw_score_kind(manifest)
            ),
            labels=labels,
            max_batch_tokens=max_batch_tokens,
            variant=variant,
            folder=folder,
            item_filter=open_item_filter(folder, manifest),
            memory=memory,
            reranker=open_reranker(folder, manifest, memory),
        )

    @property
    def can_diversify(self) -> bool:
        """Whether the index gives the label vectors that diversity compares."""
        return has_vectors(self.index)

    @property
    def efforts(self) -> tuple[str, ...]:
        """The names of the operating points: the values that a query's `effort` may have."""
        return tuple(point.name for point in self.manifest.operating_points)

    def raw_score_kind(self, effort: str) -> str:
        """The kind of a score before calibration: `logit` or `probability`.

        A re-ranker's score is a logit by name: any number may be one.
        """
        return "logit" if self._ranker.rerank_depth(effort) else raw_score_kind(self.manifest)

    @property
    def catalogue_seq(self) -> int:
        """Number of the last label change that answers reflect; it rises with every change."""
        return self.catalogue.seq

    def find_label(self, label_id: str) -> tuple[Label, bool] | None:
        """The live label of an id, and whether it was added or changed after sealing; else None."""
        row, snapshot = self.catalogue.row_of(label_id), self.catalogue.snapshot
        if row is None:
            return None
        changed = snapshot is not None and (row >= snapshot.n_base or row in snapshot.overrides)
        return self.catalogue.label(row), changed

    def neighbours(self, embeddings: Float32Rows, effort: str) -> list[list[dict[str, Any]]] | None:
        """The training queries nearest to each embedding (n, dim), with the ids of their labels.

        None if the bundle has no memory of training queries.
        """
        memory = self.memory
        if memory is None:
            return None
        neighbours = memory.recall(embeddings, effort)
        return [
            [
                {
                    "similarity": round(float(similarity), 6),
                    "labels": [
                        self.catalogue.label(int(row)).label_id
                        for row in self._allowed(memory.labels_of(int(j)))
                    ],
                }
                for j, similarity in zip(rows, similarities, strict=True)
            ]
            for rows, similarities in zip(neighbours.rows, neighbours.scores, strict=True)
        ]

    def contributions(
        self, queries: Sequence[Query], predictions: Sequence[Prediction]
    ) -> list[list[dict[str, float] | None]] | None:
        """How much each feature moved the re-ranker's score of each label, for each query.

        `Reranker.contributions` says what that means. A label beyond the candidates has None. The
        queries have one effort; None if that effort re-ranks nothing. It searches and re-ranks once
        more.
        """
        effort = queries[0].effort
        depth = self._ranker.rerank_depth(effort)
        if self.reranker is None or not depth:
            return None
        spread = QueryTexts.of(queries)
        batch = pad(self.tokenizer.tokenize(spread.texts))
        tokens = _words(spread, [([*range(len(spread.texts))], batch)])
        embeddings = np.stack([prediction.embedding for prediction in predictions])
        head = self.catalogue.search(embeddings, depth, effort)
        changes = self.reranker.contributions(head, embeddings, tokens, effort)
        return [
            [candidates.get(row) for row in prediction.rows.tolist()]
            for candidates, prediction in zip(changes, predictions, strict=True)
        ]

    def search(self, embeddings: Float32Rows, k: int, effort: str) -> Hits:
        """Top k labels of each embedding (n, dim) by the index, under the label rules alone.

        Scores are raw. No re-ranker moves them.
        """
        return self._ranker.hits(embeddings, k, effort, None, None)[0]

    def predict(self, queries: Sequence[Query]) -> PredictedBatch:
        """Answer a batch. An answer does not depend on the other queries of the batch.

        Raises ValueError if a query has an `item_id` and the bundle has no item filter, and
        RuntimeError if the tokenizer or the encoder fails.
        """
        start_s = self.clock()
        spread = QueryTexts.of(queries)
        encodings = self.tokenizer.tokenize(spread.texts)
        lengths = [len(encoding) for encoding in encodings]
        chunks = [
            (chunk, pad([encodings[i] for i in chunk]))
            for chunk in length_sorted_chunks(lengths, self.max_batch_tokens)
        ]
        tokenized_s = self.clock()
        rows = np.zeros((len(spread.texts), self.encoder.dim), np.float32)
        cut = np.zeros(len(spread.texts), np.bool_)
        for chunk, batch in chunks:
            rows[chunk] = self.encoder.encode(batch)
            cut[chunk] = batch.truncated
        embeddings = spread.embeddings(rows)
        encoded_s = self.clock()
        tokens = None if self.reranker is None else _words(spread, chunks)
        readings = zip(
            spread.truncated(cut).tolist(),
            spread.n_tokens(lengths),
            spread.tokenless(self.tokenizer, lengths),
            strict=True,
        )
        predictions, rerank_s = self._search(queries, embeddings, list(readings), tokens)
        timings = StageTimings(
            tokenize_s=tokenized_s - start_s,
            encode_s=encoded_s - tokenized_s,
            search_s=self.clock() - encoded_s - rerank_s,
            n_tokens=sum(lengths),
            n_padded_tokens=sum(batch.ids.size for _, batch in chunks),
            rerank_s=rerank_s,
        )
        return PredictedBatch(predictions, timings)

    def warm_up(self) -> None:
        """Run every effort on one query and on eight, so that no user pays for the first run."""
        for effort in self.efforts:
            self.predict([Query("warm up", self.manifest.defaults.k, effort)])
            self.predict([Query("warm up " * n, 1, effort) for n in range(1, 9)])

    def replay_golden(self) -> None:
        """Answer the golden queries again; raises GoldenMismatch if an answer differs too much."""
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
        """For each golden query, how far its answer is from the recorded one, in served score."""
        effort = self.manifest.defaults.effort
        queries = [Query(item.query, len(item.label_ids), effort) for item in golden]
        answers = self.predict(queries).predictions if queries else []
        return [
            drift_of(item, {self.labels[int(row)].label_id for row in answer.rows}, answer)
            for item, answer in zip(golden, answers, strict=True)
        ]

    def _search(
        self,
        queries: Sequence[Query],
        embeddings: Float32Rows,
        readings: Sequence[tuple[bool, int, bool]],
        tokens: Tokens | None,
    ) -> tuple[list[Prediction], float]:
        """Search the index once for each group of queries with one depth, effort and filter.

        A reading says of a query whether it was cut, its number of tokens, and whether a text left
        none. Returns the predictions, and the seconds that re-ranking took.
        """
        item_rows = {
            position: self._rows_of_item(query.item_id)
            for position, query in enumerate(queries)
            if query.item_id is not None
        }
        groups, ranker = self._groups(queries, item_rows), self._ranker
        predictions: list[Prediction | None] = [None] * len(queries)
        rerank_s = 0.0
        for (depth, effort, label_filter, _, diversity), positions in groups.items():
            one_group = len(groups) == 1  # nearly always, and then no vector is copied
            vectors = embeddings if one_group else embeddings[positions]
            words = tokens if one_group or tokens is None else tokens.of(positions)
            hidden = item_rows.get(positions[0])
            k = max([queries[position].k for position in positions])
            moves = None if self.rules is None else self.rules.moves(ranker.snapshot)
            ranked = ranker.rank(vectors, words, depth, effort, label_filter, hidden, moves)
            rerank_s += ranked.rerank_s
            if depth and (moves is not None or diversity):
                ranked = ranker.arrange(ranked, effort, moves, diversity, hidden, k)
            hits, plan, searched = ranked.hits, ranked.plan, ranked.searched
            for i, position in enumerate(positions):
                rows, calibrated, raw = hits.rows[i], ranked.scores[i], hits.scores[i]
                visible: slice | NDArray[np.int64] = slice(queries[position].k)
                if position in item_rows and plan is None:
                    visible = np.flatnonzero(~np.isin(rows, item_rows[position]))[visible]
                rows, calibrated, raw = rows[visible], calibrated[visible], raw[visible]
                truncated, n_tokens, tokenless = readings[position]
                predictions[position] = Prediction(
                    rows,
                    calibrated,
                    embeddings[position],
                    truncated,
                    raw,
                    plan,
                    n_tokens,
                    tokenless,
                    None if searched is None else searched[i, : queries[position].k],
                    None if ranked.rules is None else ranked.rules[i][visible],
                    None if ranked.unruled is None else ranked.unruled[i][visible],
                )
        return [prediction for prediction in predictions if prediction is not None], rerank_s

    def _groups(
        self, queries: Sequence[Query], item_rows: Mapping[int, NDArray[np.int64]]
    ) -> dict[tuple[int, str, LabelFilter | None, str | None, float], list[int]]:
        """The positions of queries that one search answers, by what they share.

        The depth is k plus the number of rows that the item filter lists for the query's item, and
        no less than what re-ranking and calibration read. Queries of different depths stay apart,
        because the answer of a graph search depends on it.
        """
        groups: dict[tuple[int, str, LabelFilter | None, str | None, float], list[int]] = {}
        ranker = self._ranker
        for position, query in enumerate(queries):
            label_filter = query.label_filter
            depth = query.k
            if depth and (query.diversity or (self.rules is not None and self.rules.moves_labels)):
                depth = max(depth, DIVERSITY_DEPTH, MOVED_DEPTH)
            if depth and label_filter is None:
                depth += len(item_rows.get(position, NO_ROWS))
                depth = max(depth, ranker.head_depth(query.effort))
            elif depth:
                depth = max(depth, ranker.rerank_depth(query.effort))
            item_id = query.item_id if label_filter or query.diversity else None
            key = (depth, query.effort, label_filter, item_id, query.diversity)
            groups.setdefault(key, []).append(position)
        return groups

    @property
    def _ranker(self) -> Ranker:
        """A ranker on the catalogue's present state."""
        return Ranker(
            self.index,
            self.catalogue,
            self.catalogue.snapshot,
            self.calibration,
            self.reranker,
            self.rules,
            self.clock,
        )

    def _allowed(self, rows: NDArray[np.integer]) -> NDArray[np.integer]:
        """The rows of (n,) whose labels the rules allow."""
        return rows if self.rules is None else rows[self.rules.are_open(rows.astype(np.int64))]

    def _rows_of_item(self, item_id: str) -> NDArray[np.int64]:
        if self.item_filter is None:
            raise ValueError(f"item_id is {item_id!r}, this bundle has no item filter")
        return self.item_filter.rows_for(item_id)


def _words(spread: QueryTexts, chunks: Sequence[tuple[list[int], TokenBatch]]) -> Tokens:
    """The tokens of each query: those of all its texts, one after the other."""
    tokens = Tokens.gather(len(spread.texts), chunks)
    return tokens if spread.one_each else tokens.joined(spread.owners, len(spread.queries))
