"""The FAISS index over the label vectors, and its measured operating points.

Each effort gets the smallest `ef_search` whose recall@10 against exact search reaches its target on
validation queries, two standard errors included, so that fresh queries hold it too. Latency is of
one query at a time on one thread, as a lane searches.
"""

import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.atomic import write_atomic
from models.config import IndexConfig
from models.errors import ReleaseError
from models.metrics import precision_at_k, remove_filtered
from service.bundle import EFFORTS, OperatingPoint
from service.core.index.faiss_index import EXACT, FaissIndex, open_faiss
from service.core.index.protocol import LabelIndex

log = logging.getLogger(__name__)

EF_GRID = (
    *range(10, 32, 2),
    *range(32, 80, 4),
    *range(80, 160, 8),
    *(160, 192, 224, 256, 320, 384, 512, 768, 1024),
)
EF_GRID_EFFORTS = {str(ef): {"ef_search": ef} for ef in EF_GRID}
TIMED_QUERIES = 500
_TOP = 10


def build(vectors: NDArray[np.float32], config: IndexConfig, path: Path) -> None:
    """Build and write the index; one thread, so that the same vectors give the same bytes."""
    faiss.omp_set_num_threads(1)
    if config.kind == "flat":
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
    else:
        index = _hnsw(vectors, config)
    write_atomic(path, lambda temporary: faiss.write_index(index, str(temporary)))


def _hnsw(vectors: NDArray[np.float32], config: IndexConfig) -> faiss.IndexHNSWFlat:
    """A graph linked by the cosine of *centred* vectors, searched by inner product on the vectors.

    Vectors are stored in half precision: a distance costs 0.06 us instead of 0.15, and the ranking
    keeps more than 99.9 % of its top ten (docs/decisions/0007).

    All label vectors share a large direction (it says "no" to every query alike). Subtracting their
    mean changes each query's scores by one constant, hence no ranking, but a graph linked by the
    raw vectors leaves labels that no search reaches: see docs/decisions/0004.
    """
    centred = vectors - vectors.mean(axis=0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    dim, half = vectors.shape[1], faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexHNSWSQ(dim, half, config.m, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = config.ef_construction
    index.train(centred)
    index.add(centred)
    codes = faiss.IndexScalarQuantizer(dim, half).sa_encode(np.ascontiguousarray(vectors))
    faiss.copy_array_to_vector(codes.reshape(-1), faiss.downcast_index(index.storage).codes)
    return index


def measure(
    path: Path,
    config: IndexConfig,
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    truth: csr_array,
    filtered: NDArray[np.int64] | None = None,
) -> list[OperatingPoint]:
    """Choose and measure the four efforts on validation queries. Raises ReleaseError.

    Recall is against exact search over the fp32 `vectors`, whatever the index stores; P@k is of
    answers without the `filtered` (row, label) pairs.
    """
    n_labels, dim = vectors.shape
    exact = exact_index(vectors).search(queries, _TOP, EXACT).rows
    efforts: dict[str, Mapping[str, int]] = {name: {} for name in EFFORTS}
    if config.kind == "hnsw":
        index = open_faiss(path, dim, n_labels, EF_GRID_EFFORTS)
        targets = {
            "fast": config.recall_fast,
            "balanced": config.recall_balanced,
            "thorough": config.recall_thorough,
        }
        chosen = smallest_ef_search(
            lambda effort: _recall(index.search(queries, _TOP, effort).rows, exact),
            targets,
            "index",
        )
        efforts |= {name: {"ef_search": ef} for name, ef in chosen.items()}
    index = open_faiss(path, dim, n_labels, efforts)
    return measure_points(index, efforts, exact, queries, truth, filtered)


def smallest_ef_search(
    recall: Callable[[str], tuple[float, float]], targets: Mapping[str, float], section: str
) -> dict[str, int]:
    """For each effort of `targets` the smallest `ef_search` that reaches its recall.

    `recall` gives the recall at an effort of EF_GRID_EFFORTS and its standard error. Raises
    ReleaseError, which names the configuration's `section`.
    """
    chosen: dict[str, int] = {}
    best = 0.0
    for ef in EF_GRID:
        found, error = recall(str(ef))
        best = max(best, found)
        reached = [name for name, target in targets.items() if found - 2 * error >= target]
        chosen |= {name: ef for name in reached if name not in chosen}
        if len(chosen) == len(targets):
            return chosen
    missed = next(name for name in targets if name not in chosen)
    raise ReleaseError(
        f"no ef_search up to {EF_GRID[-1]} reaches recall@10 {targets[missed]} for {missed} "
        f"(best {best:.4f}): raise index.m or index.ef_construction, or lower {section}.recall_*"
    )


def measure_points(
    index: LabelIndex,
    efforts: Mapping[str, Mapping[str, int]],
    exact: NDArray[np.int64],
    queries: NDArray[np.float32],
    truth: csr_array,
    filtered: NDArray[np.int64] | None = None,
) -> list[OperatingPoint]:
    """What `index` does at each of its `efforts`; recall is of the `exact` rows (n, 10)."""
    return [
        _point(name, index, params, exact, queries, truth, filtered)
        for name, params in efforts.items()
    ]


def exact_index(vectors: NDArray[np.float32]) -> FaissIndex:
    """Exact search over fp32 vectors, in memory: the truth that recall is measured against."""
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    return FaissIndex(flat, {EXACT: {}})


def index_params(config: IndexConfig) -> dict[str, int | float | str]:
    """How the index was built, for the manifest."""
    if config.kind == "flat":
        return {}
    return {"m": config.m, "ef_construction": config.ef_construction}


def machine() -> str:
    """What the figures were measured on, without naming a host."""
    return f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"


def _recall(rows: NDArray[np.int64], exact: NDArray[np.int64]) -> tuple[float, float]:
    """Mean share of the exact top rows that were found, and its standard error."""
    shares = (rows[:, :, None] == exact[:, None, :]).any(axis=1).mean(axis=1)
    return float(shares.mean()), float(shares.std() / np.sqrt(len(shares)))


def _point(
    name: str,
    index: LabelIndex,
    params: Mapping[str, int],
    exact: NDArray[np.int64],
    queries: NDArray[np.float32],
    truth: csr_array,
    filtered: NDArray[np.int64] | None,
) -> OperatingPoint:
    rows = ranked = index.search(queries, _TOP, name).rows
    if filtered is not None and len(filtered):
        deep = _TOP + int(np.bincount(filtered[:, 0]).max())
        ranked = np.asarray(remove_filtered(index.search(queries, deep, name).rows, filtered))
    microseconds = np.percentile(_one_by_one_us(index, name, queries), [50, 99])
    return OperatingPoint(
        name=name,
        params=dict(params),
        recall_at_10=round(_recall(rows, exact)[0], 5),
        p_at_1=round(100 * precision_at_k(ranked, truth, 1), 3),
        p_at_5=round(100 * precision_at_k(ranked, truth, 5), 3),
        search_us_p50=round(float(microseconds[0]), 1),
        search_us_p99=round(float(microseconds[1]), 1),
        machine=machine(),
    )


def _one_by_one_us(
    index: LabelIndex, effort: str, queries: NDArray[np.float32]
) -> NDArray[np.float64]:
    timed = queries[:TIMED_QUERIES]
    for query in timed[:50]:
        index.search(query[None], _TOP, effort)
    taken = np.empty(len(timed))
    for i, query in enumerate(timed):
        started = time.perf_counter()
        index.search(query[None], _TOP, effort)
        taken[i] = time.perf_counter() - started
    return taken * 1e6
