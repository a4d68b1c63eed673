"""The LabelIndex contract, checked on every FAISS kind."""

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest

from service.core.index.faiss_index import FaissIndex

DIM = 8
N_ROWS = 400
EFFORTS = {"fast": {"ef_search": 8}, "thorough": {"ef_search": 64}, "exact": {}}


def vectors(n: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


LABELS = vectors(N_ROWS, seed=1)
QUERIES = vectors(64, seed=2)


@pytest.fixture(scope="module", params=["flat", "hnsw"])
def index(request: pytest.FixtureRequest) -> FaissIndex:
    if request.param == "flat":
        raw = faiss.IndexFlatIP(DIM)
    else:
        raw = faiss.IndexHNSWFlat(DIM, 16, faiss.METRIC_INNER_PRODUCT)
    raw.add(LABELS)
    made = FaissIndex(raw, EFFORTS)
    assert made.kind == request.param
    return made


@pytest.mark.parametrize("effort", list(EFFORTS))
@pytest.mark.parametrize("k", [1, 10, N_ROWS, N_ROWS + 100])
def test_rows_are_unique_real_and_sorted(index: FaissIndex, effort: str, k: int) -> None:
    hits = index.search(QUERIES, k, effort)
    assert hits.rows.shape == hits.scores.shape == (len(QUERIES), min(k, N_ROWS))
    assert (hits.rows.dtype, hits.scores.dtype) == (np.int64, np.float32)
    assert all(len(set(rows)) == len(rows) for rows in hits.rows.tolist())
    assert ((hits.rows >= 0) & (hits.rows < N_ROWS)).all()
    assert (np.diff(hits.scores, axis=1) <= 0).all()


@pytest.mark.parametrize("effort", list(EFFORTS))
def test_scores_are_inner_products_of_the_rows_named(index: FaissIndex, effort: str) -> None:
    hits = index.search(QUERIES, 5, effort)
    truth = np.einsum("nkd,nd->nk", LABELS[hits.rows], QUERIES)
    np.testing.assert_allclose(hits.scores, truth, atol=1e-5)


def test_exact_is_exact(index: FaissIndex) -> None:
    hits = index.search(QUERIES, 10, "exact")
    truth = np.argsort(-(QUERIES @ LABELS.T), axis=1)[:, :10]
    assert (hits.rows == truth).mean() > 0.999


def test_more_effort_finds_nearly_everything(index: FaissIndex) -> None:
    found = index.search(QUERIES, 10, "thorough").rows
    truth = index.search(QUERIES, 10, "exact").rows
    shares = [
        len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), truth.tolist(), strict=True)
    ]
    assert np.mean(shares) > 0.95


@pytest.mark.parametrize("effort", list(EFFORTS))
def test_answers_do_not_depend_on_the_batch(index: FaissIndex, effort: str) -> None:
    together = index.search(QUERIES, 10, effort)
    for size in (1, 7, 33):
        parts = [
            index.search(QUERIES[i : i + size], 10, effort) for i in range(0, len(QUERIES), size)
        ]
        np.testing.assert_array_equal(np.concatenate([p.rows for p in parts]), together.rows)


def test_eight_threads_get_the_answers_of_one(index: FaissIndex) -> None:
    expected = index.search(QUERIES, 10, "fast").rows
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: index.search(QUERIES, 10, "fast").rows, range(40)))
    assert all((rows == expected).all() for rows in answers)


def test_empty_batch_gives_an_empty_answer(index: FaissIndex) -> None:
    hits = index.search(np.empty((0, DIM), np.float32), 10, "fast")
    assert hits.rows.shape == hits.scores.shape == (0, 10)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_query_that_is_not_finite_is_refused(index: FaissIndex, value: float) -> None:
    queries = QUERIES[:3].copy()
    queries[1, 2] = value
    with pytest.raises(ValueError, match="NaN or an infinite"):
        index.search(queries, 10, "fast")


def test_wrong_width_and_k_below_one_are_refused(index: FaissIndex) -> None:
    with pytest.raises(ValueError, match=f"vectors of {DIM}"):
        index.search(np.ones((1, DIM + 1), np.float32), 10, "fast")
    with pytest.raises(ValueError, match="k is 0"):
        index.search(QUERIES, 0, "fast")


def test_unknown_effort_is_a_key_error(index: FaissIndex) -> None:
    with pytest.raises(KeyError):
        index.search(QUERIES, 10, "warp")


def test_search_leaves_its_queries_untouched(index: FaissIndex) -> None:
    before = QUERIES.copy()
    index.search(QUERIES, 10, "fast")
    np.testing.assert_array_equal(QUERIES, before)


def test_an_effort_that_lacks_a_parameter_of_two_is_refused() -> None:
    lists = faiss.index_factory(DIM, "IVF4,PQ4x4fs", faiss.METRIC_INNER_PRODUCT)
    lists.train(LABELS)
    lists.add(LABELS)
    refined = faiss.IndexRefineFlat(lists, faiss.swig_ptr(LABELS))
    assert FaissIndex(refined, {"fast": {"nprobe": 2, "rescored": 20}}).kind == "ivf-pq"
    with pytest.raises(ValueError, match="wants nprobe and rescored"):
        FaissIndex(refined, {"fast": {"nprobe": 2}})


def test_an_index_of_no_known_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="IndexPQ, which is no kind"):
        FaissIndex(faiss.IndexPQ(DIM, 4, 4, faiss.METRIC_INNER_PRODUCT), {})
