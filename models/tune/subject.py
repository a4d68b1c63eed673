"""Measures how well and how fast an index searches, for candidates and for sealed bundles alike."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.config import IndexConfig
from models.index.efforts import exact_index, recall_at_10
from models.index.kind import Material
from models.quality.groups import Groups, clustered_error
from models.quality.metrics import precision_at_k, precision_of_each
from models.quality.ranking import EmbeddedSet, take
from models.tune.candidate import Candidate, Measurement
from models.tune.timing import time_search
from service.bundle.manifest import EXACT, IndexInfo, MemoryInfo
from service.core.index.augmented import open_augmented
from service.core.index.memory import MEMORY_EF_SEARCH
from service.core.index.opening import Efforts, open_label_index
from service.core.index.protocol import LabelIndex
from service.version import __version__

TOP: Final = 10


@dataclass(frozen=True, slots=True)
class Subject:
    """A trained model whose index is tuned, and the validation queries that judge it.

    Where `vectors_score` is true, the label vectors are the model, so exact search over them gives
    the correct answer. If the run has a `memory`, its files are in `run_folder`, and every answer
    blends it in; `memory_ef_search` is the width of its search.
    """

    run_folder: Path
    config: IndexConfig
    material: Material
    validation: EmbeddedSet
    vectors_score: bool = True
    memory: MemoryInfo | None = None
    memory_ef_search: int | None = None

    def shuffled(self, seed: int = 0) -> "Subject":
        """The same subject with shuffled queries, so that the first few are a fair sample."""
        order = np.random.default_rng(seed).permutation(len(self.queries))
        return replace(self, validation=take(self.validation, order))

    @property
    def queries(self) -> NDArray[np.float32]:
        """The embeddings (n, dim) of the validation queries."""
        return self.validation.queries

    def open(self, folder: Path, info: IndexInfo, efforts: Efforts) -> LabelIndex:
        """Open a built index, together with the memory if there is one, as the service would."""
        whole = {name: self.whole(params) for name, params in efforts.items()}
        labels = open_label_index(folder, info, self.queries.shape[1], whole)
        if self.memory is None:
            return labels
        return open_augmented(self.run_folder, self.memory, labels, whole)

    def open_reference(self) -> LabelIndex:
        """An index that searches the fp32 label vectors exactly; its only effort is `exact`."""
        labels = exact_index(self.material.vectors)
        if self.memory is None:
            return labels
        return open_augmented(self.run_folder, self.memory, labels, {EXACT: {}})

    def whole(self, params: Mapping[str, int]) -> dict[str, int]:
        """Add the memory's parameter to an effort's.

        An effort without parameters stays exhaustive.
        """
        if not params or self.memory_ef_search is None:
            return dict(params)
        return {**params, MEMORY_EF_SEARCH: self.memory_ef_search}

    def rank(self, index: LabelIndex, effort: str, n: int) -> NDArray[np.int64]:
        """Best label rows (n, 10) for the first n queries, filtered pairs left out."""
        some = take(self.validation, np.arange(n))
        return some.first(index.search(some.queries, TOP + some.spare, effort).rows, TOP)

    def digest(self) -> str:
        """Twelve hex digits of a hash over vectors, queries, memory and the version of the code."""
        digest = hashlib.sha256(__version__.encode())
        digest.update(self.material.vectors.tobytes())
        digest.update(self.queries.tobytes())
        digest.update(repr((self.memory, self.memory_ef_search)).encode())
        return digest.hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Truth:
    """Best rows (n, 10) of an exhaustive search; `ranked` (n, 10) leaves filtered pairs out.

    `groups` (n,) are the queries' groups.
    """

    rows: NDArray[np.int64]
    ranked: NDArray[np.int64]
    groups: Groups


@dataclass(frozen=True, slots=True)
class Searched:
    """An open index, one effort to search it with, and what its answers are compared with."""

    candidate: Candidate
    index: LabelIndex
    effort: str
    truth: Truth
    own_scores: bool
    index_bytes: int

    def recall(self, queries: NDArray[np.float32]) -> tuple[float, float]:
        """Recall@10 on `queries`, the first of the subject's, and its standard error."""
        rows = self.index.search(queries, TOP, self.effort).rows
        n = len(queries)
        return recall_at_10(rows, self.truth.rows[:n], self.truth.groups[:n])


class Judge:
    """Measures searches on the shuffled queries of a subject."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject.shuffled()
        self._rng = np.random.default_rng()
        self._by_vectors = self._exhaustive(self.subject.open_reference())

    def truth_of(self, index: LabelIndex, own_scores: bool) -> Truth:
        """The exact answers with which an index is compared.

        Without `own_scores` they come from the label vectors in fp32. With `own_scores` recall
        compares with the index's own exhaustive search. P@1 still compares with the label vectors
        where these are the model.
        """
        if not own_scores:
            return self._by_vectors
        own = self._exhaustive(index)
        return replace(own, ranked=self._by_vectors.ranked) if self.subject.vectors_score else own

    def _exhaustive(self, index: LabelIndex) -> Truth:
        rows = index.search(self.subject.queries, TOP, EXACT).rows
        groups = self.subject.validation.groups
        return Truth(rows, self.subject.rank(index, EXACT, len(rows)), groups)

    def measure(self, searched: Searched, n: int, *, carefully: bool) -> Measurement:
        """Measure quality and time on the first n queries; `carefully` as in `time_search`."""
        subject, index, effort = self.subject, searched.index, searched.effort
        truth, queries = subject.validation.truth[:n], subject.queries[:n]
        rows = index.search(queries, TOP, effort).rows
        groups = searched.truth.groups[:n]
        recall, error = recall_at_10(rows, searched.truth.rows[:n], groups)
        ranked = subject.rank(index, effort, n) if subject.validation.spare else rows
        p_at_1 = 100 * precision_at_k(ranked, truth, 1)
        losses = 100 * (
            precision_of_each(searched.truth.ranked[:n], truth, 1)
            - precision_of_each(ranked, truth, 1)
        )
        loss_error = clustered_error(losses, groups[np.diff(truth.indptr) > 0])
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
            p_at_1_loss=round(float(losses.mean()), 3),
            p_at_1_loss_error=round(loss_error, 3),
            own_scores=searched.own_scores,
            timing=timing,
            index_bytes=searched.index_bytes,
        )


def has_own_scores(info: IndexInfo) -> bool:
    """Whether an index has a scoring model of its own, other than the label vectors."""
    return info.metric != "inner_product"


def size_of(folder: Path, info: IndexInfo) -> int:
    """Size of the index files in bytes."""
    return sum((folder / name).stat().st_size for name in info.files)
