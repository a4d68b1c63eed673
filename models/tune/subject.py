"""What is tuned, and how a search of it is measured: the same for a candidate and for a bundle."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.config import IndexConfig
from models.index.efforts import exact_index, recall_at_10
from models.index.kind import Material
from models.quality.metrics import precision_at_k
from models.quality.ranking import spare, without
from models.tune.candidate import Candidate, Measurement
from models.tune.timing import time_search
from service.bundle.manifest import EXACT, IndexInfo, MemoryInfo
from service.core.index.augmented import MEMORY_EF_SEARCH, open_augmented
from service.core.index.opening import Efforts, open_label_index
from service.core.index.protocol import LabelIndex
from service.version import __version__

TOP: Final = 10


@dataclass(frozen=True, slots=True)
class Subject:
    """What is tuned: a trained model's material, and the validation queries that judge.

    `queries` (n, dim), `truth` csr (n, n_labels) and the (row, label) pairs of `filtered` go
    together. What an exact search over the material's vectors finds is the truth where the
    `vectors_score`; other models score otherwise. Where the run has a `memory`, it lies in
    `run_folder` and is blended into every answer, at the given width of its search.
    """

    run_folder: Path
    config: IndexConfig
    material: Material
    queries: NDArray[np.float32]
    truth: csr_array
    filtered: NDArray[np.int64]
    vectors_score: bool = True
    memory: MemoryInfo | None = None
    memory_ef_search: int | None = None

    def shuffled(self, seed: int = 0) -> "Subject":
        """The queries in a random order, so that the first few stand for all."""
        order = np.random.default_rng(seed).permutation(len(self.queries))
        place_of = np.argsort(order)
        filtered = self.filtered.copy()
        filtered[:, 0] = place_of[filtered[:, 0]]
        return replace(
            self,
            queries=np.ascontiguousarray(self.queries[order]),
            truth=self.truth[order],
            filtered=filtered,
        )

    def open(self, folder: Path, info: IndexInfo, efforts: Efforts) -> LabelIndex:
        """A built index with the memory beside it, as a bundle would have it."""
        whole = {name: self.whole(params) for name, params in efforts.items()}
        labels = open_label_index(folder, info, self.queries.shape[1], whole)
        if self.memory is None:
            return labels
        return open_augmented(self.run_folder, self.memory, labels, whole)

    def open_reference(self) -> LabelIndex:
        """Exact search over the fp32 label vectors, at the effort `exact`."""
        labels = exact_index(self.material.vectors)
        if self.memory is None:
            return labels
        return open_augmented(self.run_folder, self.memory, labels, {EXACT: {}})

    def whole(self, params: Mapping[str, int]) -> dict[str, int]:
        """An effort's parameters with the memory's; one without any stays exhaustive."""
        if not params or self.memory_ef_search is None:
            return dict(params)
        return {**params, MEMORY_EF_SEARCH: self.memory_ef_search}

    def rank(self, index: LabelIndex, effort: str, n: int) -> NDArray[np.int64]:
        """Label rows (n, 10) of the first n queries without the filtered pairs."""
        filtered = self.filtered[self.filtered[:, 0] < n]
        ranked = index.search(self.queries[:n], TOP + spare(filtered), effort).rows
        return without(ranked, filtered, TOP)

    def digest(self) -> str:
        """Twelve hex digits that name this very model, its queries and memory, and the code."""
        digest = hashlib.sha256(__version__.encode())
        digest.update(self.material.vectors.tobytes())
        digest.update(self.queries.tobytes())
        digest.update(repr((self.memory, self.memory_ef_search)).encode())
        return digest.hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Truth:
    """Exhaustive search: its `rows` (n, 10), and the same `ranked` without the filtered pairs."""

    rows: NDArray[np.int64]
    ranked: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Searched:
    """One way to search an open index: by a named effort."""

    candidate: Candidate
    index: LabelIndex
    effort: str
    truth: Truth
    own_scores: bool
    index_bytes: int

    def recall(self, queries: NDArray[np.float32]) -> tuple[float, float]:
        """Recall@10 on the first queries, all or some, and its standard error."""
        rows = self.index.search(queries, TOP, self.effort).rows
        return recall_at_10(rows, self.truth.rows[: len(queries)])


class Judge:
    """Measures searches on the queries of a subject, put into a random order."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject.shuffled()
        self._rng = np.random.default_rng()
        self._by_vectors = self._exhaustive(self.subject.open_reference())

    def truth_of(self, index: LabelIndex, own_scores: bool) -> Truth:
        """What an index is held to: recall to its own scores, P@1 to the model's.

        Both are those of the label vectors in fp32, where these are the model.
        """
        if not own_scores:
            return self._by_vectors
        own = self._exhaustive(index)
        return replace(own, ranked=self._by_vectors.ranked) if self.subject.vectors_score else own

    def _exhaustive(self, index: LabelIndex) -> Truth:
        rows = index.search(self.subject.queries, TOP, EXACT).rows
        return Truth(rows, self.subject.rank(index, EXACT, len(rows)))

    def measure(self, searched: Searched, n: int, *, carefully: bool) -> Measurement:
        """Quality and time on the first n queries."""
        subject, index, effort = self.subject, searched.index, searched.effort
        truth, queries = subject.truth[:n], subject.queries[:n]
        rows = index.search(queries, TOP, effort).rows
        recall, error = recall_at_10(rows, searched.truth.rows[:n])
        ranked = subject.rank(index, effort, n) if len(subject.filtered) else rows
        p_at_1 = 100 * precision_at_k(ranked, truth, 1)
        exact_p_at_1 = 100 * precision_at_k(searched.truth.ranked[:n], truth, 1)
        timing = time_search(
            lambda query: index.search(query, TOP, effort),
            queries,
            self._rng,
            carefully=carefully,
        )
        return Measurement(
            candidate=searched.candidate,
            n_queries=n,
            recall=round(recall, 6),
            recall_error=round(error, 6),
            p_at_1=round(p_at_1, 3),
            p_at_5=round(100 * precision_at_k(ranked, truth, 5), 3),
            p_at_1_loss=round(exact_p_at_1 - p_at_1, 3),
            own_scores=searched.own_scores,
            timing=timing,
            index_bytes=searched.index_bytes,
        )


def has_own_scores(info: IndexInfo) -> bool:
    """Whether an index scores by a model of its own, not by the label vectors."""
    return info.metric != "inner_product"


def size_of(folder: Path, info: IndexInfo) -> int:
    """Bytes of the index files."""
    return sum((folder / name).stat().st_size for name in info.files)
