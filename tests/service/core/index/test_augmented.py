"""The LabelIndex contract on an index with a memory, and its scores against a slow twin."""

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest

from service.core.index.augmented import AugmentedIndex, Blend, blend
from service.core.index.faiss_index import FaissIndex
from service.core.index.memory_labels import MemoryLabels
from service.core.types import Hits
from tests.support.memories import assert_same_hits, plain_blend

DIM = 8
N_LABELS = 120
N_MEMORY = 300
SETTINGS = Blend(weight=0.3, temperature=0.1, neighbours=12, depth=25, logit_bias=-1.0)
EFFORTS = {"fast": {"ef_search": 8}, "thorough": {"ef_search": 64}, "exact": {}}


def unit_rows(n: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def remembered(seed: int) -> MemoryLabels:
    """Zero to four labels a row, so that some neighbours say nothing."""
    rng = np.random.default_rng(seed)
    labels = [rng.choice(N_LABELS, rng.integers(5), replace=False) for _ in range(N_MEMORY)]
    offsets = np.cumsum([0, *map(len, labels)])
    values = rng.uniform(0.2, 1, offsets[-1])
    return MemoryLabels(
        offsets.astype(np.int64),
        np.concatenate(labels).astype(np.int32),
        values.astype(np.float32),
    )


LABELS = 4 * unit_rows(N_LABELS, seed=1)
MEMORY = unit_rows(N_MEMORY, seed=2)
MEMORY_LABELS = remembered(seed=3)
QUERIES = unit_rows(48, seed=4)


def faiss_index(kind: str, rows: np.ndarray) -> FaissIndex:
    if kind == "flat":
        raw = faiss.IndexFlatIP(DIM)
    else:
        raw = faiss.IndexHNSWFlat(DIM, 16, faiss.METRIC_INNER_PRODUCT)
    raw.add(rows)
    return FaissIndex(raw, EFFORTS)


@pytest.fixture(scope="module", params=["flat", "hnsw"])
def parts(request: pytest.FixtureRequest) -> tuple[FaissIndex, FaissIndex]:
    return faiss_index(request.param, LABELS), faiss_index(request.param, MEMORY)


@pytest.fixture(scope="module")
def index(parts: tuple[FaissIndex, FaissIndex]) -> AugmentedIndex:
    return AugmentedIndex(*parts, MEMORY_LABELS, SETTINGS)


@pytest.mark.parametrize("effort", list(EFFORTS))
@pytest.mark.parametrize("k", [1, 10, 60])
def test_answers_are_those_of_the_slow_twin(
    parts: tuple[FaissIndex, FaissIndex], index: AugmentedIndex, effort: str, k: int
) -> None:
    labels, memory = parts
    found = labels.search(QUERIES, max(k, SETTINGS.depth), effort)
    recalled = memory.search(QUERIES, SETTINGS.neighbours, effort)
    expected = plain_blend(found, recalled, MEMORY_LABELS, SETTINGS, k)
    assert_same_hits(index.search(QUERIES, k, effort), expected)


@pytest.mark.parametrize("effort", list(EFFORTS))
@pytest.mark.parametrize("k", [1, 10, N_LABELS, N_LABELS + 100])
def test_rows_are_unique_real_and_sorted(index: AugmentedIndex, effort: str, k: int) -> None:
    hits = index.search(QUERIES, k, effort)
    assert hits.rows.shape == hits.scores.shape == (len(QUERIES), min(k, N_LABELS))
    assert (hits.rows.dtype, hits.scores.dtype) == (np.int64, np.float32)
    assert all(len(set(rows)) == len(rows) for rows in hits.rows.tolist())
    assert ((hits.rows >= 0) & (hits.rows < N_LABELS)).all()
    assert (np.diff(hits.scores, axis=1) <= 0).all()
    assert ((hits.scores >= 0) & (hits.scores <= 1)).all()


def test_a_label_beyond_the_shortlist_comes_in_through_the_memory() -> None:
    """Label 7 is not among the found; the one neighbour has it in full."""
    found = Hits(np.array([[3, 5]]), np.array([[0.0, -2.0]], np.float32))
    recalled = Hits(np.array([[1]]), np.array([[0.9]], np.float32))
    memory = MemoryLabels(
        np.array([0, 1, 3]), np.array([0, 7, 5], np.int32), np.ones(3, np.float32)
    )
    settings = Blend(weight=0.25, temperature=0.1, neighbours=1, depth=2, logit_bias=0.0)
    hits = blend(found, recalled, memory, settings, n_labels=9, k=2)
    assert hits.rows.tolist() == [[3, 5]]
    half = Blend(weight=0.5, temperature=0.1, neighbours=1, depth=2, logit_bias=0.0)
    assert blend(found, recalled, memory, half, n_labels=9, k=2).rows.tolist() == [[5, 7]]


def test_labels_with_one_score_come_in_row_order() -> None:
    found = Hits(np.array([[8, 2, 5]]), np.zeros((1, 3), np.float32))
    recalled = Hits(np.array([[0]]), np.ones((1, 1), np.float32))
    memory = MemoryLabels(np.array([0, 0]), np.empty(0, np.int32), np.empty(0, np.float32))
    assert blend(found, recalled, memory, SETTINGS, n_labels=9, k=3).rows.tolist() == [[2, 5, 8]]


def test_logits_of_any_size_keep_their_order() -> None:
    logits = np.array([[900.0, 30.0, 20.0, -200.0, -900.0]], np.float32)
    found = Hits(np.array([[4, 3, 2, 1, 0]]), logits)
    recalled = Hits(np.array([[0]]), np.ones((1, 1), np.float32))
    memory = MemoryLabels(np.array([0, 0]), np.empty(0, np.int32), np.empty(0, np.float32))
    hits = blend(found, recalled, memory, SETTINGS, n_labels=5, k=5)
    assert hits.rows.tolist() == [[4, 3, 2, 1, 0]]
    assert np.isfinite(hits.scores).all()


def test_fewer_memory_rows_than_neighbours_are_all_used() -> None:
    labels, memory = faiss_index("flat", LABELS), faiss_index("flat", MEMORY[:5])
    few = MemoryLabels(
        MEMORY_LABELS.offsets[:6],
        MEMORY_LABELS.labels[: MEMORY_LABELS.offsets[5]],
        MEMORY_LABELS.values[: MEMORY_LABELS.offsets[5]],
    )
    hits = AugmentedIndex(labels, memory, few, SETTINGS).search(QUERIES, 10, "exact")
    found = labels.search(QUERIES, SETTINGS.depth, "exact")
    assert_same_hits(
        hits, plain_blend(found, memory.search(QUERIES, 5, "exact"), few, SETTINGS, 10)
    )


@pytest.mark.parametrize("effort", list(EFFORTS))
def test_answers_do_not_depend_on_the_batch(index: AugmentedIndex, effort: str) -> None:
    together = index.search(QUERIES, 10, effort)
    for size in (1, 7, 33):
        pieces = [
            index.search(QUERIES[i : i + size], 10, effort) for i in range(0, len(QUERIES), size)
        ]
        np.testing.assert_array_equal(np.concatenate([p.rows for p in pieces]), together.rows)
        scores = np.concatenate([p.scores for p in pieces])
        np.testing.assert_allclose(scores, together.scores, rtol=1e-5)


def test_eight_threads_get_the_answers_of_one(index: AugmentedIndex) -> None:
    expected = index.search(QUERIES, 10, "fast").rows
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: index.search(QUERIES, 10, "fast").rows, range(40)))
    assert all((rows == expected).all() for rows in answers)


def test_empty_batch_gives_an_empty_answer(index: AugmentedIndex) -> None:
    hits = index.search(np.empty((0, DIM), np.float32), 10, "fast")
    assert hits.rows.shape == hits.scores.shape == (0, 10)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_query_that_is_not_finite_is_refused(index: AugmentedIndex, value: float) -> None:
    queries = QUERIES[:3].copy()
    queries[1, 2] = value
    with pytest.raises(ValueError, match="NaN or an infinite"):
        index.search(queries, 10, "fast")


def test_wrong_width_and_k_below_one_are_refused(index: AugmentedIndex) -> None:
    with pytest.raises(ValueError, match=f"vectors of {DIM}"):
        index.search(np.ones((1, DIM + 1), np.float32), 10, "fast")
    with pytest.raises(ValueError, match="k is 0"):
        index.search(QUERIES, 0, "fast")


def test_unknown_effort_is_a_key_error(index: AugmentedIndex) -> None:
    with pytest.raises(KeyError):
        index.search(QUERIES, 10, "warp")


def test_search_leaves_its_queries_and_the_memory_untouched(index: AugmentedIndex) -> None:
    arrays = (QUERIES, MEMORY_LABELS.offsets, MEMORY_LABELS.labels, MEMORY_LABELS.values)
    before = [array.copy() for array in arrays]
    index.search(QUERIES, 10, "fast")
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_without_a_bias_label_scores_are_probabilities_already():
    settings = Blend(weight=0.25, temperature=0.1, neighbours=1, depth=2, logit_bias=None)
    found = Hits(np.array([[3, 1]]), np.array([[0.8, 0.4]], np.float32))
    recalled = Hits(np.array([[0]]), np.array([[0.9]], np.float32))
    labels = MemoryLabels(np.array([0, 1]), np.array([1], np.int32), np.ones(1, np.float32))
    hits = blend(found, recalled, labels, settings, 5, 2)
    assert hits.rows.tolist() == [[3, 1]]
    assert hits.scores == pytest.approx(np.array([[0.75 * 0.8, 0.75 * 0.4 + 0.25]]))
