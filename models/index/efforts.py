"""The measured operating points of a built index.

Each effort gets the cheapest entry of its kind's grid that reaches the effort's target of recall@10
on validation queries. The recall less two standard errors must reach the target, so that it is
likely to hold for other queries too. Recall is against exhaustive search. Latency is that of one
query at a time on one thread, as a lane searches.
"""

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from models.config import IndexConfig, MemoryConfig
from models.errors import ReleaseError
from models.index.registry import KINDS
from models.quality.groups import Groups, clustered_error
from models.quality.metrics import precision_at_k
from models.quality.ranking import EmbeddedSet
from service.bundle.manifest import EFFORTS, EXACT, IndexInfo, OperatingPoint
from service.core.index.faiss_index import FaissIndex
from service.core.index.opening import open_label_index
from service.core.index.protocol import LabelIndex

TIMED_QUERIES = 500
"""Our choice: the 99th percentile then has five queries above it, in under a second a point."""
_TOP = 10


def measure(
    folder: Path,
    info: IndexInfo,
    config: IndexConfig,
    vectors: NDArray[np.float32],
    validation: EmbeddedSet,
) -> list[OperatingPoint]:
    """Choose and measure the four efforts on validation queries.

    Recall is against exact search over the fp32 `vectors` (n_labels, dim). If the scores are not
    inner products, it is against the index's own exhaustive search. P@k is of answers without the
    filter pairs. Raises ReleaseError if no entry of the grid reaches a target.
    """
    kind, dim, queries = KINDS[info.kind], vectors.shape[1], validation.queries
    grid = kind.grid(config, info.n_rows)
    index = open_label_index(folder, info, dim, named(grid) | {EXACT: {}})
    reference = exact_index(vectors) if info.metric == "inner_product" else index
    exact = reference.search(queries, _TOP, EXACT).rows
    choices = cheapest(
        lambda effort: recall_at_10(
            index.search(queries, _TOP, effort).rows, exact, validation.groups
        ),
        grid,
        recall_targets(config),
        info.params,
        "index",
    )
    efforts = {name: choices.get(name, {}) for name in EFFORTS}
    index = open_label_index(folder, info, dim, efforts)
    return measure_points(index, efforts, exact, validation)


def recall_targets(config: IndexConfig | MemoryConfig) -> dict[str, float]:
    """The least recall@10 of each effort but `exact`, by its name."""
    return {name: getattr(config, f"recall_{name}") for name in EFFORTS if name != EXACT}


def named(grid: Sequence[Mapping[str, int]]) -> dict[str, Mapping[str, int]]:
    """The entries of a grid as efforts, named by their place: "0", "1" and so on."""
    return {str(place): params for place, params in enumerate(grid)}


def cheapest(
    recall: Callable[[str], tuple[float, float]],
    grid: Sequence[Mapping[str, int]],
    targets: Mapping[str, float],
    built_by: Iterable[str],
    section: str,
) -> dict[str, Mapping[str, int]]:
    """For each effort of `targets`, the first entry of the grid that reaches its recall.

    `recall` returns the recall of an effort of `named(grid)`, and its standard error. Raises
    ReleaseError if no entry reaches a target. Its message advises to change the index settings
    `built_by`, or to lower the targets in `section`.
    """
    choices: dict[str, Mapping[str, int]] = {}
    best = 0.0
    for place, params in enumerate(grid):
        mean, error = recall(str(place))
        best = max(best, mean)
        efforts = [name for name, target in targets.items() if mean - 2 * error >= target]
        choices |= {name: params for name in efforts if name not in choices}
        if len(choices) == len(targets):
            return choices
    failure = next(name for name in targets if name not in choices)
    last = ", ".join(f"{key} {value}" for key, value in grid[-1].items())
    keys = " or ".join(f"index.{key}" for key in built_by)
    raise ReleaseError(
        f"no search up to {last} reaches recall@10 {targets[failure]} for {failure} "
        f"(best {best:.4f}): change {keys or 'index.kind'}, or lower {section}.recall_*"
    )


def measure_points(
    index: LabelIndex,
    efforts: Mapping[str, Mapping[str, int]],
    exact: NDArray[np.int64],
    validation: EmbeddedSet,
) -> list[OperatingPoint]:
    """The figures of `index` at each of its `efforts`; recall is against rows `exact` (n, 10)."""
    return [_point(name, index, params, exact, validation) for name, params in efforts.items()]


def exact_index(vectors: NDArray[np.float32]) -> FaissIndex:
    """Exact search over fp32 `vectors` (n, dim), in memory; recall is measured against it."""
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    return FaissIndex(flat, {EXACT: {}}, batched=True)


def machine() -> str:
    """The machine that measures, without its host name."""
    return f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"


def recall_at_10(
    rows: NDArray[np.int64], exact: NDArray[np.int64], groups: Groups
) -> tuple[float, float]:
    """Mean share of the rows `exact` (n, 10) that are in `rows` (n, 10), and its standard error.

    The error lets queries of a group (n,) vary together.
    """
    shares = (rows[:, :, None] == exact[:, None, :]).any(axis=1).mean(axis=1)
    return float(shares.mean()), clustered_error(shares, groups)


def one_by_one_us(
    index: LabelIndex, effort: str, queries: NDArray[np.float32], k: int = _TOP
) -> NDArray[np.float64]:
    """Microseconds of each of the first TIMED_QUERIES queries, one at a time, after a warm-up."""
    queries = queries[:TIMED_QUERIES]
    for query in queries[:50]:
        index.search(query[None], k, effort)
    seconds = np.empty(len(queries))
    for i, query in enumerate(queries):
        started = time.perf_counter()
        index.search(query[None], k, effort)
        seconds[i] = time.perf_counter() - started
    return seconds * 1e6


def _point(
    name: str,
    index: LabelIndex,
    params: Mapping[str, int],
    exact: NDArray[np.int64],
    validation: EmbeddedSet,
) -> OperatingPoint:
    queries, truth = validation.queries, validation.truth
    rows = ranked = index.search(queries, _TOP, name).rows
    if more := validation.spare:
        ranked = validation.first(index.search(queries, _TOP + more, name).rows, _TOP)
    microseconds = np.percentile(one_by_one_us(index, name, queries), [50, 99])
    return OperatingPoint(
        name=name,
        params=dict(params),
        recall_at_10=round(recall_at_10(rows, exact, validation.groups)[0], 5),
        p_at_1=round(100 * precision_at_k(ranked, truth, 1), 3),
        p_at_5=round(100 * precision_at_k(ranked, truth, 5), 3),
        search_us_p50=round(float(microseconds[0]), 1),
        search_us_p99=round(float(microseconds[1]), 1),
        machine=machine(),
    )
