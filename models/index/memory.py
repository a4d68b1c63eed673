"""The memory of retrieval-augmented scoring: built from training queries, judged on validation.

What is compared is computed by `blend`, the very arithmetic that serves
(`service.core.index.augmented`), and the index is built like the one over the labels. All but
`build_memory`, which does the whole for a run, are functions over arrays.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.config import Config, IndexConfig
from models.index.efforts import cheapest, exact_index, measure_points, named, recall_targets
from models.index.flat import Flat, write_flat
from models.index.hnsw import GRID as GRAPH_GRID
from models.index.hnsw import Hnsw, write_hnsw
from models.quality.metrics import ndcg_of_each, precision_at_k, remove_filtered
from models.quality.ranking import EmbeddedSet, EvaluationSet
from models.runs import Run
from service.atomic import write_array
from service.bundle.manifest import EXACT, IndexInfo, MemoryInfo, OperatingPoint
from service.core.index.augmented import (
    MEMORY_EF_SEARCH,
    AugmentedIndex,
    Blend,
    blend,
    open_augmented,
)
from service.core.index.faiss_index import FaissIndex, open_faiss
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
FLAT = Flat.name
_TOP = 5
_RECALL_TOP = 10
_HALF_PRECISION = 1e-3  # of a cosine stored in 16 bits


@dataclass(frozen=True, slots=True)
class Memory:
    """Training queries that are remembered: unit `vectors` (n, dim) and the labels of each."""

    vectors: NDArray[np.float32]
    labels: MemoryLabels


def remember(vectors: NDArray[np.float32], labels: csr_array, values: Values) -> Memory:
    """The queries (n, dim) that have a label in `labels` (n, n_labels), whatever its entries are.

    `one`: each label of a neighbour counts in full, so the memory's part is the share of like
    queries that have the label, a probability as the label part is. `share`: a neighbour's labels
    divide one between them, so a query with many labels says less about each. Raises ValueError
    where no query has a label.

    >>> rows = np.eye(3, dtype=np.float32)
    >>> memory = remember(rows, csr_array([[0, 1, 1], [0, 0, 0], [1, 0, 0]]), "share")
    >>> memory.vectors.shape, memory.labels.values
    ((2, 3), array([0.5, 0.5, 1. ], dtype=float32))
    """
    clean = csr_array(labels).astype(bool)  # a copy: the next two lines work in place
    clean.sum_duplicates()
    clean.eliminate_zeros()
    kept = np.flatnonzero(np.diff(clean.indptr))  # the others would take a neighbour's place
    if not len(kept):
        raise ValueError("no training query has a label, so there is nothing to remember")
    clean = clean[kept]
    lengths = np.diff(clean.indptr)
    each = np.ones(len(lengths)) if values == "one" else 1 / lengths
    return Memory(
        np.ascontiguousarray(vectors[kept]),
        MemoryLabels(
            clean.indptr.astype(np.int64),
            clean.indices.astype(np.int32),
            np.repeat(each, lengths).astype(np.float32),
        ),
    )


def index_kind(config: IndexConfig) -> str:
    """Kind of the memory's own index: a scan where the labels' is one, else a graph."""
    return FLAT if config.kind == FLAT else Hnsw.name


def write_memory(memory: Memory, config: IndexConfig, folder: Path) -> None:
    """Leave MEMORY_FILES in `folder`, each written atomically."""
    path = folder / MEMORY_INDEX_FILE
    if index_kind(config) == FLAT:
        write_flat(memory.vectors, path)
    else:
        write_hnsw(memory.vectors, config, path)
    write_array(folder / MEMORY_OFFSETS_FILE, memory.labels.offsets)
    write_array(folder / MEMORY_LABELS_FILE, memory.labels.labels)
    write_array(folder / MEMORY_VALUES_FILE, memory.labels.values)


def memory_recall(
    index: FaissIndex, effort: str, queries: NDArray[np.float32], exact: Hits
) -> tuple[float, float]:
    """Share of the exact ten nearest (n, 10) that an effort reaches, and its standard error.

    Reached is any neighbour that is as near as the tenth: queries repeat, and which of two equal
    ones is found does not matter.
    """
    found = index.search(queries, exact.rows.shape[1], effort)
    shares = (found.scores >= exact.scores[:, -1:] - _HALF_PRECISION).mean(axis=1)
    return float(shares.mean()), float(shares.std() / np.sqrt(len(shares)))


@dataclass(frozen=True, slots=True)
class Grid:
    """What `choose` tries; the weight 0, no memory, is always tried too.

    It is not chosen where a memory is `demanded`.
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
    """The setting that was chosen (weight 0: no memory), and all that were tried.

    `gain` is nDCG@5 with a memory over that without one, cross-fitted: on each half of the queries,
    with the setting that is best on the other half. It and its `standard_error` are in percent.
    """

    chosen: Trial
    gain: float
    standard_error: float
    trials: tuple[Trial, ...]

    @property
    def used(self) -> bool:
        """Whether a memory goes into the bundle."""
        return self.chosen.weight > 0

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return asdict(self)


def choose(
    found: Hits,
    recalled: Hits,
    labels: MemoryLabels,
    validation: EvaluationSet[Any],
    logit_bias: float | None,
    grid: Grid,
) -> MemoryChoice:
    """The setting with the best nDCG@5 on validation queries, if it beats doing without.

    `found` are exact label answers (n, depth), `recalled` exact neighbours (n, at least the largest
    of `grid.neighbours`, or all).

    nDCG@5 because it is one figure over the five places that matter, the first most, and, unlike
    P@5, it can reach 1 for a query with two labels. The best of many trials flatters itself, so the
    gain is cross-fitted, and it must be over two standard errors, for a memory costs a second
    search; unless one is demanded. Raises ValueError for an empty grid.
    """
    settings = list(product(grid.neighbours, grid.temperatures, grid.weights))
    if not settings:
        raise ValueError("the grid is empty: give at least one weight, temperature and count")
    width, n_labels = min(_TOP + validation.spare, found.rows.shape[1]), validation.truth.shape[1]
    trials = [_trial(validation, found.rows[:, :width], 0.0, 0.0, 0)]
    for neighbours, temperature, weight in settings:
        nearest = Hits(recalled.rows[:, :neighbours], recalled.scores[:, :neighbours])
        setting = Blend(weight, temperature, neighbours, found.rows.shape[1], logit_bias)
        ranked = blend(found, nearest, labels, setting, n_labels, width).rows
        trials.append(_trial(validation, ranked, weight, temperature, neighbours))
    each = np.stack([of_each for _, of_each in trials])  # (trials, queries)
    gains = _crossed_gains(each)
    gain, error = 100 * float(gains.mean()), 100 * float(gains.std() / np.sqrt(len(gains)))
    best = 1 + int(each[1:].mean(axis=1).argmax()) if grid.demanded or gain > 2 * error else 0
    return MemoryChoice(trials[best][0], gain, error, tuple(trial for trial, _ in trials))


def _crossed_gains(each: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gain of each query (n,) over the first of the trials (m, n), by the other half's best."""
    fold = np.arange(each.shape[1]) % 2
    gains = np.empty(each.shape[1])
    for held_out in (0, 1):
        inside = fold == held_out
        best = 1 + int(each[1:, ~inside].mean(axis=1).argmax())
        gains[inside] = each[best, inside] - each[0, inside]
    return gains


def _trial(
    validation: EvaluationSet[Any],
    ranked: NDArray[np.int64],
    weight: float,
    temperature: float,
    neighbours: int,
) -> tuple[Trial, NDArray[np.float64]]:
    """The figures of a ranking (n, five and what the filter may take), and nDCG@5 of each query."""
    pairs, truth = validation.filter_pairs, validation.truth
    rows = ranked if pairs is None else remove_filtered(ranked, pairs)
    each = ndcg_of_each(rows, truth, _TOP)
    figures = (precision_at_k(rows, truth, 1), precision_at_k(rows, truth, _TOP))
    p1, p5, ndcg = (100 * float(figure) for figure in (*figures, each.mean()))
    return Trial(weight, temperature, neighbours, p1, p5, ndcg), each


@dataclass(frozen=True, slots=True)
class LabelIndexFacts:
    """The label index that a memory stands beside: what it is built from, what it is, what it does.

    `vectors` (n_labels, dim) are fp32; `points` are its own operating points.
    """

    vectors: NDArray[np.float32]
    info: IndexInfo
    points: Sequence[OperatingPoint]

    def exhaustive(self, folder: Path) -> LabelIndex:
        """All labels scanned: by the fp32 vectors, or by what scores them otherwise."""
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
    """The operating points of the label index again, with the memory in `folder` beside it.

    Each effort keeps its parameters and gets the smallest `memory_ef_search` whose recall of
    neighbours reaches its target in `recalls`. The recall that is recorded is of the blended
    answers, against exact search in both (by fp32 vectors, where these make the scores). Raises
    ReleaseError.
    """
    queries = validation.queries
    efforts = {point.name: dict(point.params) for point in label_index.points}
    if info.kind == Hnsw.name:
        path, (n_rows, dim) = folder / info.files[0], memory.vectors.shape
        index = open_faiss(path, dim, n_rows, named(GRAPH_GRID))
        nearest = exact_index(memory.vectors).search(queries, _RECALL_TOP, EXACT)
        chosen = cheapest(
            lambda effort: memory_recall(index, effort, queries, nearest),
            GRAPH_GRID,
            recalls,
            info.params,
            "memory",
        )
        for name, params in chosen.items():
            efforts[name][MEMORY_EF_SEARCH] = params["ef_search"]
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


@dataclass(frozen=True, slots=True)
class Kept:
    """What came of a memory: the record of the choice, and the rest where it is used."""

    record: dict[str, Any]
    info: MemoryInfo | None = None
    points: list[OperatingPoint] = field(default_factory=list)


def build_memory(
    memory: Memory, label_index: LabelIndexFacts, validation: EmbeddedSet, run: Run
) -> Kept:
    """Choose on validation queries how a memory is blended in; write and measure it if it pays.

    Raises ReleaseError where the memory's index does not reach its recalls.
    """
    config, queries = run.config.memory, validation.queries
    grid = Grid(
        tuple(config.weights),
        tuple(config.temperatures),
        tuple(config.neighbours),
        demanded=config.kind == "queries",
    )
    found = label_index.exhaustive(run.folder).search(queries, config.depth, EXACT)
    bias = None if label_index.info.metric == "probability" else run.config.method.logit_bias
    recalled = exact_index(memory.vectors).search(queries, max(config.neighbours), EXACT)
    choice = choose(found, recalled, memory.labels, validation, bias, grid)
    log.info(
        "a memory gains %.2f +- %.2f nDCG@5: %s",
        choice.gain,
        choice.standard_error,
        "kept" if choice.used else "left out",
    )
    if not choice.used:
        return Kept(choice.as_dict())
    write_memory(memory, run.config.index, run.folder)
    info = _describe(memory, choice.chosen, run.config, bias)
    points = measure(run.folder, label_index, memory, info, recall_targets(config), validation)
    return Kept(choice.as_dict() | {"info": info.model_dump()}, info, points)


def _describe(
    memory: Memory, chosen: Trial, config: Config, logit_bias: float | None
) -> MemoryInfo:
    kind = index_kind(config.index)
    return MemoryInfo(
        kind=kind,
        files=list(MEMORY_FILES),
        n_rows=len(memory.vectors),
        params=Hnsw().params(config.index) if kind == Hnsw.name else {},
        neighbours=chosen.neighbours,
        depth=config.memory.depth,
        weight=chosen.weight,
        temperature=chosen.temperature,
        logit_bias=logit_bias,
    )
