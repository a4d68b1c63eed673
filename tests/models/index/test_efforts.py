"""The index reaches its recall targets or refuses, and its points say what they measured."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from models.config import IndexConfig
from models.errors import ReleaseError
from models.index.efforts import measure, recall_at_10
from models.index.kind import Material
from models.index.registry import KINDS, build_label_index
from models.quality.ranking import EvaluationSet
from service.core.index.faiss_index import open_faiss

N, DIM = 3000, 32


@pytest.fixture(scope="module")
def vectors():
    """Clustered vectors with one large direction in common, as trained classifiers have."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((60, DIM))
    rows = centres[rng.integers(60, size=N)] + 0.5 * rng.standard_normal((N, DIM))
    return (rows - 4 * np.eye(DIM)[0]).astype(np.float32)


@pytest.fixture(scope="module")
def queries(vectors):
    rng = np.random.default_rng(2)
    rows = vectors[rng.integers(N, size=400)] + 0.3 * rng.standard_normal((400, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def truth(vectors, queries):
    nearest = (queries @ vectors.T).argmax(axis=1)
    return csr_array((np.ones(400, np.float32), (np.arange(400), nearest)), shape=(400, N))


def build(vectors, config, folder):
    empty = csr_array((0, len(vectors)), dtype=np.float32)
    return build_label_index(Material(vectors, 0.0, vectors[:0], empty), config, folder)


def test_index_recall_against_exact(vectors, queries, truth, tmp_path):
    config = IndexConfig(recall_fast=0.9, recall_balanced=0.98, recall_thorough=0.995)
    info = build(vectors, config, tmp_path)
    points = {
        point.name: point
        for point in measure(tmp_path, info, config, vectors, EvaluationSet(queries, truth))
    }
    assert list(points) == ["fast", "balanced", "thorough", "exact"]
    assert points["fast"].recall_at_10 >= 0.9
    assert points["balanced"].recall_at_10 >= 0.98
    assert points["thorough"].recall_at_10 >= 0.995
    assert points["exact"].recall_at_10 >= 0.999  # of fp32 search; half precision swaps near ties
    assert points["exact"].p_at_1 >= 99.0
    efs = [points[name].params["ef_search"] for name in ("fast", "balanced", "thorough")]
    assert efs == sorted(efs)


@pytest.mark.parametrize("kind", ["sq8", "pq-fastscan", "ivf-flat", "ivf-pq"])
def test_every_kind_reaches_its_recalls_by_its_own_parameters(
    kind, vectors, queries, truth, tmp_path
):
    config = IndexConfig(kind=kind, recall_fast=0.9, recall_balanced=0.98, recall_thorough=0.995)
    info = build(vectors, config, tmp_path)
    grid = KINDS[kind].grid(config, N)
    *points, exact = measure(tmp_path, info, config, vectors, EvaluationSet(queries, truth))
    places = [grid.index(point.params) for point in points]
    assert places == sorted(places)
    for point, target in zip(points, (0.9, 0.98, 0.995), strict=True):
        assert point.recall_at_10 >= target
    assert (exact.params, exact.recall_at_10 >= 0.999) == ({}, True)


def test_codes_in_lists_shortlist_as_well_however_long_the_vectors_are(vectors, queries, tmp_path):
    found = []
    for number, longer in enumerate((0.3, 1.0, 30.0)):
        folder = tmp_path / str(number)
        folder.mkdir()
        info = build(longer * vectors, IndexConfig(kind="ivf-pq"), folder)
        efforts = {"all lists": {"nprobe": 108, "rescored": 40}}
        index = open_faiss(folder / info.files[0], DIM, N, efforts)
        rows = index.search(queries, 10, "all lists").rows
        truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
        found.append(np.mean([np.isin(a, b).mean() for a, b in zip(truth, rows, strict=True)]))
    assert max(found) - min(found) < 0.005
    assert min(found) > 0.99


def test_many_lists_are_found_by_codes_of_their_centres(vectors, queries, tmp_path):
    config = IndexConfig(kind="ivf-pq", ivf_lists=1100)
    info = build(vectors, config, tmp_path)
    efforts = {str(n): {"nprobe": n, "rescored": 80} for n in (40, 600, 1100, 5000)}
    index = open_faiss(tmp_path / info.files[0], DIM, N, efforts)
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    for effort, least in (("40", 0.8), ("600", 0.99), ("1100", 0.99), ("5000", 0.99)):
        together = index.search(queries, 10, effort).rows
        alone = [index.search(query[None], 10, effort).rows[0] for query in queries]
        assert np.array_equal(together, alone)
        shares = [np.isin(a, b).mean() for a, b in zip(truth, together, strict=True)]
        assert np.mean(shares) > least, effort


def test_a_second_list_finds_in_few_visits_what_one_list_misses(vectors, queries, tmp_path):
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    found = []
    for copies in (1, 2):
        folder = tmp_path / str(copies)
        folder.mkdir()
        info = build(vectors, IndexConfig(kind="ivf-pq", ivf_copies=copies), folder)
        efforts = {"one visit": {"nprobe": 1, "rescored": 160}}
        index = open_faiss(folder / info.files[0], DIM, N, efforts)
        rows = index.search(queries, 10, "one visit").rows
        found.append(np.mean([np.isin(a, b).mean() for a, b in zip(truth, rows, strict=True)]))
    assert found[1] > found[0] + 0.1


def test_stored_vectors_are_the_raw_ones_whatever_links_the_graph(vectors, queries, tmp_path):
    build(vectors, IndexConfig(), tmp_path)
    index = open_faiss(tmp_path / "index.faiss", DIM, N, {"exact": {}, "wide": {"ef_search": 400}})
    expected = (queries @ vectors.T).max(axis=1)
    for effort in ("exact", "wide"):
        assert np.allclose(index.search(queries, 1, effort).scores[:, 0], expected, rtol=2e-3)


def test_same_vectors_give_the_same_bytes(vectors, tmp_path):
    contents = []
    for _ in range(2):
        info = build(vectors, IndexConfig(), tmp_path)
        contents.append([(tmp_path / name).read_bytes() for name in info.files])
    assert contents[0] == contents[1]


def test_a_target_out_of_reach_is_refused_with_what_to_change(vectors, queries, truth, tmp_path):
    config = IndexConfig(m=2, ef_construction=4, recall_balanced=0.999, recall_thorough=0.999)
    info = build(vectors, config, tmp_path)
    with pytest.raises(ReleaseError, match=r"up to ef_search 1024 .* change index\.m or"):
        measure(tmp_path, info, config, vectors, EvaluationSet(queries, truth))


def test_a_flat_index_is_exact_at_every_effort(vectors, queries, truth, tmp_path):
    config = IndexConfig(kind="flat")
    info = build(vectors, config, tmp_path)
    points = measure(tmp_path, info, config, vectors, EvaluationSet(queries, truth))
    assert [point.recall_at_10 for point in points] == [1.0] * 4


def test_precision_is_of_answers_without_the_filtered_pairs(vectors, queries, truth, tmp_path):
    config = IndexConfig(kind="flat")
    info = build(vectors, config, tmp_path)
    filtered = np.stack(truth.nonzero(), axis=1)[:200].astype(np.int64)
    plain = measure(tmp_path, info, config, vectors, EvaluationSet(queries, truth))[0]
    left = measure(tmp_path, info, config, vectors, EvaluationSet(queries, truth, filtered))[0]
    assert (plain.p_at_1, left.p_at_1) == (100.0, 50.0)
    assert left.recall_at_10 == plain.recall_at_10


def test_a_recall_is_less_sure_where_queries_come_in_series():
    """Each query stands there four times, so there are 25 of them and not 100."""
    rng = np.random.default_rng(1)
    exact = np.tile(np.arange(10), (100, 1))
    found = np.repeat(np.where(rng.random((25, 10)) < 0.9, np.arange(10), 99), 4, axis=0)
    (recall, error), (same, larger) = (
        recall_at_10(found, exact, groups) for groups in (np.arange(100), np.arange(100) // 4)
    )
    assert recall == same
    assert larger == pytest.approx(2 * error)
