"""The memory of retrieval-augmented scoring: training queries with their labels.

`choose` compares settings on validation queries. It blends with `service.core.index.augmented`, so
with the service's own arithmetic. The memory's index is a scan or a graph, like a label index.
`build_memory` does everything for a run; the other functions take arrays.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.config import Config, IndexConfig
from models.index.efforts import cheapest, exact_index, measure_points, named, recall_targets
from models.index.flat import Flat
from models.index.hnsw import GRID as GRAPH_GRID
from models.index.hnsw import Hnsw
from models.index.kind import FaissKind
from models.index.quantised import PqFastScan
from models.quality.groups import Groups, clustered_error, fold_in_two
from models.quality.metrics import ndcg_of_each, precision_at_k, remove_filtered
from models.quality.ranking import EmbeddedSet, EvaluationSet
from models.runs import Run
from service.atomic import write_array
from service.bundle.manifest import EXACT, IndexInfo, MemoryInfo, OperatingPoint
from service.core.index.augmented import (
    AugmentedIndex,
    Blend,
    blend,
    open_augmented,
)
from service.core.index.faiss_index import FaissIndex, open_faiss
from service.core.index.memory import MEMORY_EF_SEARCH
from service.core.index.memory_labels import MemoryLabels
from service.core.index.opening import open_label_index
from service.core.index.protocol import LabelIndex
from service.core.types import Hits

log = logging.getLogger(__name__)

MEMORY_INDEX_FILE = "memory.faiss"
MEMORY_OFFSETS_FILE = "memory.offsets.npy"
MEMORY_LABELS_FILE = "memory.labels.npy"
MEMORY_VALUES_FILE = "memory.values.npy"
MEMORY_FILES = (MEMORY_INDEX_FILE, MEMORY_OFFSETS_FILE, MEMORY_LABELS_FILE, MEMORY_VALUES_FILE)

Values = Literal["one", "share"]
_TOP = 5
"""The k of the nDCG@k that chooses the setting; `choose` says why."""
_REPEATS = 10
"""Draws of the halves that a gain is the mean of. A choice: single draws of the demo's gain had a
standard deviation as large as the gain."""
MOST_SCANNED: Final = 1 << 16
"""Most queries that are found by a scan of four-bit codes. A choice: of 35,386 in 384 dimensions a
scan found 100 neighbours in 0.64 of the CPU time of a graph, and more of them; its time grows with
their number (docs/decisions/0029)."""
_RECALL_TOP = 10
FEATURE_TEMPERATURE: Final = 0.05
"""Of a memory that is a feature. A choice: in the middle of what `memory.temperatures` tries."""
_HALF_PRECISION = 1e-3
"""Above the rounding error of a cosine between vectors in 16 bits."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Training queries: unit `vectors` (n, dim), and the labels of each."""

    vectors: NDArray[np.float32]
    labels: MemoryLabels


def remember(vectors: NDArray[np.float32], labels: csr_array, values: Values) -> Memory:
    """A memory of the queries `vectors` (n, dim) that have a label in `labels` (n, n_labels).

    With `one`, each label of a neighbour counts 1. The memory's part of a score is then the share
    of similar queries with the label, a probability like the label index's part. With `share`, the
    labels of a neighbour add up to 1, so a query with many labels says less about each. Raises
    ValueError if no query has a label.

    >>> rows = np.eye(3, dtype=np.float32)
    >>> memory = remember(rows, csr_array([[0, 1, 1], [0, 0, 0], [1, 0, 0]]), "share")
    >>> memory.vectors.shape, memory.labels.values
    ((2, 3), array([0.5, 0.5, 1. ], dtype=float32))
    """
    clean = csr_array(labels).astype(bool)  # a copy: the next two lines work in place
    clean.sum_duplicates()
    clean.eliminate_zeros()
    with_labels = np.flatnonzero(np.diff(clean.indptr))  # others would be useless neighbours
    if not len(with_labels):
        raise ValueError("no training query has a label, so there is nothing to remember")
    clean = clean[with_labels]
    lengths = np.diff(clean.indptr)
    value = np.ones(len(lengths)) if values == "one" else 1 / lengths
    return Memory(
        np.ascontiguousarray(vectors[with_labels]),
        MemoryLabels(
            clean.indptr.astype(np.int64),
            clean.indices.astype(np.int32),
            np.repeat(value, lengths).astype(np.float32),
        ),
    )


def index_kind(config: IndexConfig, n_rows: int) -> FaissKind:
    """The kind of the memory's own index, of `n_rows` queries, beside a label index of `config`.

    A scan of the label index's own sort while that is the quickest, else a graph.
    """
    if config.kind == PqFastScan.name and n_rows <= MOST_SCANNED:
        return PqFastScan()
    return Flat() if config.kind == Flat.name else Hnsw()


def write_memory(memory: Memory, config: IndexConfig, folder: Path) -> None:
    """Write MEMORY_FILES into `folder`, each atomically."""
    index_kind(config, len(memory.vectors)).write(
        memory.vectors, config, folder / MEMORY_INDEX_FILE
    )
    write_array(folder / MEMORY_OFFSETS_FILE, memory.labels.offsets)
    write_array(folder / MEMORY_LABELS_FILE, memory.labels.labels)
    write_array(folder / MEMORY_VALUES_FILE, memory.labels.values)


def memory_recall(
    index: FaissIndex, effort: str, validation: EmbeddedSet, exact: Hits
) -> tuple[float, float]:
    """Mean share of the `exact` ten nearest (n, 10) that an effort finds, and its standard error.

    Every neighbour as near as the tenth counts, because queries repeat, and either of two equal
    ones is right.
    """
    neighbours = index.search(validation.queries, exact.rows.shape[1], effort)
    shares = (neighbours.scores >= exact.scores[:, -1:] - _HALF_PRECISION).mean(axis=1)
    return float(shares.mean()), clustered_error(shares, validation.groups)


@dataclass(frozen=True, slots=True)
class Grid:
    """The settings that `choose` tries: each combination, and weight 0, which is no memory.

    If a memory is `demanded`, weight 0 is not chosen.
    """

    weights: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
    temperatures: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    neighbours: tuple[int, ...] = (10, 30, 100)
    demanded: bool = False


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting of the memory and its validation figures, in percent."""

    weight: float
    temperature: float
    neighbours: int
    p_at_1: float
    p_at_5: float
    ndcg_at_5: float


@dataclass(frozen=True, slots=True)
class MemoryChoice:
    """The best setting (weight 0: no memory), and the figures of all `trials`.

    `gain` is nDCG@5 with a memory minus nDCG@5 without one. It is cross-fitted: each half of the
    queries is scored with the best setting of the other half, no group is in both, and the mean is
    over several draws of the halves. `gain` and its `standard_error`, which lets queries of a group
    vary together, are in percent.
    """

    chosen: Trial
    gain: float
    standard_error: float
    trials: tuple[Trial, ...]

    @property
    def used(self) -> bool:
        """Whether the bundle gets a memory."""
        return self.chosen.weight > 0


def choose(
    label_hits: Hits,
    neighbours: Hits,
    labels: MemoryLabels,
    validation: EvaluationSet[Any],
    logit_bias: float | None,
    grid: Grid,
) -> MemoryChoice:
    """The setting with the best nDCG@5 on validation queries, or weight 0 if it gains too little.

    `label_hits` (n, depth) are exact answers of the label index. `neighbours` (n, m) are exact
    answers of the memory, m the largest of `grid.neighbours`, or all. `labels` are the memory's.

    nDCG@5 is one figure over the first five places and weighs the first most. Unlike P@5, it can
    reach 1 for a query with two labels. The best of many trials looks better than it is, so the
    gain is cross-fitted. It must be over two standard errors, because a memory costs a second
    search, unless a memory is demanded. Raises ValueError for an empty grid.
    """
    settings = list(product(grid.neighbours, grid.temperatures, grid.weights))
    if not settings:
        raise ValueError("the grid is empty: give at least one weight, temperature and count")
    width, n_labels = (
        min(_TOP + validation.spare, label_hits.rows.shape[1]),
        validation.truth.shape[1],
    )
    trials = [_trial(validation, label_hits.rows[:, :width], 0.0, 0.0, 0)]
    for count, temperature, weight in settings:
        nearest = Hits(neighbours.rows[:, :count], neighbours.scores[:, :count])
        setting = Blend(weight, temperature, count, label_hits.rows.shape[1], logit_bias)
        ranked = blend(label_hits, nearest, labels, setting, n_labels, width).rows
        trials.append(_trial(validation, ranked, weight, temperature, count))
    ndcg = np.stack([query_ndcg for _, query_ndcg in trials])  # (trials, queries)
    groups = validation.labelled_groups
    gains = _cross_fitted_gains(ndcg, groups)
    gain, error = 100 * float(gains.mean()), 100 * clustered_error(gains, groups)
    best = 1 + int(ndcg[1:].mean(axis=1).argmax()) if grid.demanded or gain > 2 * error else 0
    return MemoryChoice(trials[best][0], gain, error, tuple(trial for trial, _ in trials))


def _cross_fitted_gains(ndcg: NDArray[np.float64], groups: Groups) -> NDArray[np.float64]:
    """The gain (n,) of each query over trial 0, with the best trial of the other half.

    `ndcg` is (trials, n). The gain is the mean over the draws of the halves.
    """
    gains = np.zeros(ndcg.shape[1])
    for seed in range(_REPEATS):
        second = fold_in_two(groups, np.random.default_rng(seed))
        for half in (second, ~second):
            best = 1 + int(ndcg[1:, ~half].mean(axis=1).argmax())
            gains[half] += (ndcg[best, half] - ndcg[0, half]) / _REPEATS
    return gains


def _trial(
    validation: EvaluationSet[Any],
    ranked: NDArray[np.int64],
    weight: float,
    temperature: float,
    neighbours: int,
) -> tuple[Trial, NDArray[np.float64]]:
    """The figures of a ranking (n, 5 + spare), and the nDCG@5 of each query."""
    pairs, truth = validation.filter_pairs, validation.truth
    rows = ranked if pairs is None else remove_filtered(ranked, pairs)
    query_ndcg = ndcg_of_each(rows, truth, _TOP)
    figures = (precision_at_k(rows, truth, 1), precision_at_k(rows, truth, _TOP))
    p1, p5, ndcg = (100 * float(figure) for figure in (*figures, query_ndcg.mean()))
    return Trial(weight, temperature, neighbours, p1, p5, ndcg), query_ndcg


@dataclass(frozen=True, slots=True)
class LabelIndexFacts:
    """The label index beside a memory: its fp32 `vectors` (n_labels, dim) and manifest entries.

    `points` are its operating points without the memory.
    """

    vectors: NDArray[np.float32]
    info: IndexInfo
    points: Sequence[OperatingPoint]

    def exhaustive(self, folder: Path) -> LabelIndex:
        """Exhaustive search: over the fp32 vectors, or by the index if its scores are others."""
        if self.info.metric == "inner_product":
            return exact_index(self.vectors)
        return open_label_index(folder, self.info, self.vectors.shape[1], {EXACT: {}})


def measure(
    folder: Path,
    label_index: LabelIndexFacts,
    memory: Memory,
    info: MemoryInfo,
    recalls: Mapping[str, float],
    validation: EmbeddedSet,
) -> list[OperatingPoint]:
    """The operating points of the label index together with the memory in `folder`.

    Each effort keeps its parameters. It also gets the smallest `memory_ef_search` whose recall of
    neighbours reaches its target in `recalls`. The recall in the result is that of the blended
    answers, against exhaustive search of both indexes. Raises ReleaseError if a target is missed.
    """
    queries = validation.queries
    efforts = {point.name: dict(point.params) for point in label_index.points}
    for name, width in search_widths(folder, memory, info, recalls, validation).items():
        efforts[name][MEMORY_EF_SEARCH] = width
    labels = open_label_index(folder, label_index.info, label_index.vectors.shape[1], efforts)
    augmented = open_augmented(folder, info, labels, efforts)
    reference = AugmentedIndex(
        label_index.exhaustive(folder),
        exact_index(memory.vectors),
        memory.labels,
        augmented.settings,
    )
    exact = reference.search(queries, _RECALL_TOP, EXACT).rows
    return measure_points(augmented, efforts, exact, validation)


def search_widths(
    folder: Path,
    memory: Memory,
    info: MemoryInfo,
    recalls: Mapping[str, float],
    validation: EmbeddedSet,
) -> dict[str, int]:
    """The smallest `ef_search` of the memory in `folder` with which each effort has its recall.

    Empty where the memory is scanned. Raises ReleaseError if a target in `recalls` is missed.
    """
    if info.kind != Hnsw.name:
        return {}
    path, (n_rows, dim) = folder / info.files[0], memory.vectors.shape
    index = open_faiss(path, dim, n_rows, named(GRAPH_GRID))
    nearest = exact_index(memory.vectors).search(validation.queries, _RECALL_TOP, EXACT)
    choices = cheapest(
        lambda effort: memory_recall(index, effort, validation, nearest),
        GRAPH_GRID,
        recalls,
        info.params,
        "memory",
    )
    return {name: params["ef_search"] for name, params in choices.items()}


@dataclass(frozen=True, slots=True)
class MemoryOutcome:
    """The result of `build_memory`: the record of the choice, and the memory, if it is used."""

    record: dict[str, Any]
    info: MemoryInfo | None = None
    points: list[OperatingPoint] = field(default_factory=list)


def build_memory(
    memory: Memory, label_index: LabelIndexFacts, validation: EmbeddedSet, run: Run
) -> MemoryOutcome:
    """Choose a memory's setting on validation queries; write and measure it if it is used.

    Raises ReleaseError if the memory's index misses a target of recall.
    """
    config, queries = run.config.memory, validation.queries
    grid = Grid(
        tuple(config.weights),
        tuple(config.temperatures),
        tuple(config.neighbours),
        demanded=config.kind == "queries",
    )
    label_hits = label_index.exhaustive(run.folder).search(queries, config.depth, EXACT)
    bias = None if label_index.info.metric == "probability" else run.config.method.logit_bias
    neighbours = exact_index(memory.vectors).search(queries, max(config.neighbours), EXACT)
    choice = choose(label_hits, neighbours, memory.labels, validation, bias, grid)
    log.info(
        "a memory gains %.2f +- %.2f nDCG@5: %s",
        choice.gain,
        choice.standard_error,
        "kept" if choice.used else "left out",
    )
    if not choice.used:
        return MemoryOutcome(asdict(choice))
    write_memory(memory, run.config.index, run.folder)
    info = _describe(memory, choice.chosen, run.config, bias)
    points = measure(run.folder, label_index, memory, info, recall_targets(config), validation)
    return MemoryOutcome(asdict(choice) | {"info": info.model_dump()}, info, points)


def _describe(
    memory: Memory, setting: Trial, config: Config, logit_bias: float | None
) -> MemoryInfo:
    kind = index_kind(config.index, len(memory.vectors))
    return MemoryInfo(
        kind=kind.name,
        files=list(MEMORY_FILES),
        n_rows=len(memory.vectors),
        params=kind.params(config.index),
        neighbours=setting.neighbours,
        depth=config.memory.depth,
        weight=setting.weight,
        temperature=setting.temperature,
        logit_bias=logit_bias,
    )


def write_for_features(memory: Memory, config: Config, neighbours: int, folder: Path) -> MemoryInfo:
    """Write a memory that no score is blended with, for a second stage to read `neighbours` of."""
    write_memory(memory, config.index, folder)
    kind = index_kind(config.index, len(memory.vectors))
    return MemoryInfo(
        kind=kind.name,
        files=list(MEMORY_FILES),
        n_rows=len(memory.vectors),
        params=kind.params(config.index),
        neighbours=min(neighbours, len(memory.vectors)),
        depth=config.memory.depth,
        weight=0.0,
        temperature=FEATURE_TEMPERATURE,
        logit_bias=None,
    )
