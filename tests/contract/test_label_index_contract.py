"""What every label index promises, whatever it is made of: `service.core.index.protocol`.

Each kind of `models.index.registry` is built and opened here as a run would; an index that is
put together otherwise, such as one with a memory beside it, is one more entry of `CASES`.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from scipy.sparse import csr_array

from models.config import IndexConfig
from models.index.kind import Material
from models.index.memory import MEMORY_FILES, remember, write_memory
from models.index.registry import KINDS, build_label_index
from models.training.label_graph import LabelGraph
from service.bundle.manifest import EXACT, IndexInfo, MemoryInfo
from service.core.catalogue.delta import DeltaRows
from service.core.catalogue.snapshot import Snapshot
from service.core.index.augmented import open_augmented
from service.core.index.faiss_index import FaissIndex
from service.core.index.opening import open_label_index
from service.core.index.protocol import MAX_QUERY_LENGTH, LabelIndex
from service.core.labels.labels import Label, LabelStore, write_labels
from service.core.types import Hits

DIM, N_LABELS, N_POINTS, N_QUERIES = 16, 600, 900, 150
BIAS = -3.0
LOOSE = 5e-3  # of an inner product of vectors in half precision


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def made_up() -> tuple[Material, np.ndarray]:
    """Labels in clusters with a direction in common, some of them equal; training points; queries.

    Equal labels have equal scores, so whatever breaks ties shows.
    """
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((30, DIM))
    vectors = centres[rng.integers(30, size=N_LABELS)] + 0.6 * rng.standard_normal((N_LABELS, DIM))
    vectors[::10] = vectors[1::10]
    vectors = (vectors - 3 * np.eye(DIM)[0]).astype(np.float32)
    of = rng.integers(N_LABELS, size=N_POINTS)
    points = unit(vectors[of] + 0.5 * rng.standard_normal((N_POINTS, DIM)))
    labels = csr_array(
        (np.ones(N_POINTS, np.float32), (np.arange(N_POINTS), of)), shape=(N_POINTS, N_LABELS)
    )
    near = vectors[rng.integers(N_LABELS, size=N_QUERIES)]
    queries = unit(near + 0.5 * rng.standard_normal((N_QUERIES, DIM)))
    weights = rng.random((len(centres), 60), dtype=np.float32)
    edges = np.argsort(-(centres @ vectors.T), axis=1)[:, :60].astype(np.int32)
    clusters = 3 * centres.astype(np.float32)
    graph = LabelGraph(clusters, np.zeros(len(centres), np.float32), edges, weights, 10.0)
    return Material(vectors, BIAS, points, labels, graph), queries


MATERIAL, QUERIES = made_up()
CONFIG = IndexConfig()


@dataclass(frozen=True)
class Opened:
    """An index as it serves, its efforts from the cheapest to exact, and what it must agree with.

    `truth` gives the scores of all labels (n, n_labels); `loaded` opens the same index without
    mapping any file; `prunes` says that less effort only leaves labels out. (A memory does more:
    where it misses a neighbour the others weigh more.)
    """

    index: LabelIndex
    efforts: tuple[str, ...]
    truth: Callable[[np.ndarray], np.ndarray] | None
    loaded: Callable[[], LabelIndex] | None
    prunes: bool = True


def efforts_of(kind: str, extra: Mapping[str, int] | None = None) -> dict[str, dict[str, int]]:
    grid = KINDS[kind].grid(CONFIG, N_LABELS)
    chosen = {"first": grid[0], "middle": grid[len(grid) // 2], "last": grid[-1]}
    return {name: params | (extra or {}) for name, params in chosen.items()} | {EXACT: {}}


def built(kind: str, folder: Path, settings: Mapping[str, int] | None = None) -> IndexInfo:
    config = CONFIG.model_copy(update={"kind": kind, **(settings or {})})
    return build_label_index(MATERIAL, config, folder)


def registered(kind: str, **settings: int) -> Callable[[Path], Opened]:
    def open_it(folder: Path) -> Opened:
        info = built(kind, folder, settings)
        efforts = efforts_of(kind)
        index = open_label_index(folder, info, DIM, efforts)
        loaded = None
        if isinstance(index, FaissIndex):
            path = str(folder / info.files[0])
            loaded = lambda: FaissIndex(faiss.read_index(path), efforts)  # noqa: E731
        truth = inner_products if info.metric == "inner_product" else None
        return Opened(index, tuple(efforts), truth, loaded)

    return open_it


def with_a_memory(kind: str, memory_kind: str = "hnsw") -> Callable[[Path], Opened]:
    def open_it(folder: Path) -> Opened:
        info = built(kind, folder)
        efforts = efforts_of(kind, {"memory_ef_search": 30})
        memory = remember(MATERIAL.points, MATERIAL.labels, "one")
        write_memory(memory, CONFIG.model_copy(update={"kind": memory_kind}), folder)
        about = MemoryInfo(
            kind=memory_kind,
            files=list(MEMORY_FILES),
            n_rows=N_POINTS,
            params={},
            neighbours=10,
            depth=30,
            weight=0.3,
            temperature=0.1,
            logit_bias=BIAS,
        )
        labels = open_label_index(folder, info, DIM, efforts)
        both = open_augmented(folder, about, labels, efforts)
        return Opened(both, tuple(efforts), None, None, prunes=False)

    return open_it


@dataclass(frozen=True)
class Changed:
    """A snapshot of a catalogue that holds N_LABELS live labels, as an index."""

    snapshot: Snapshot
    kind: str = "changed"
    dim: int = DIM
    n_rows: int = N_LABELS

    def search(self, queries: np.ndarray, k: int, effort: str) -> Hits:
        return self.snapshot.search(queries, k, effort)

    def search_among(self, queries: np.ndarray, rows: np.ndarray, k: int) -> Hits:
        return self.snapshot.search_among(queries, rows, k)


def changed(kind: str, n_added: int, n_removed: int) -> Callable[[Path], Opened]:
    """The last `n_added` labels are in the delta; behind the others stand removed ones."""

    def open_it(folder: Path) -> Opened:
        of_base = N_LABELS - n_added
        removed = MATERIAL.vectors[:n_removed] * np.float32(1.5)  # they would come first
        vectors = np.concatenate([MATERIAL.vectors[:of_base], removed])
        config = CONFIG.model_copy(update={"kind": kind})
        info = build_label_index(replace(MATERIAL, vectors=vectors), config, folder)
        write_labels(folder, [Label(f"l{row}", "text") for row in range(len(vectors))])
        efforts = efforts_of(kind)
        delta = DeltaRows(DIM, len(vectors))
        delta.append(MATERIAL.vectors[of_base:])
        snapshot = Snapshot(
            base=open_label_index(folder, info, DIM, efforts),
            labels=LabelStore(folder),
            n_base=len(vectors),
            tombstones=np.arange(of_base, len(vectors)),
            overrides={},
            added=[],
            delta=delta.view(None),
        )
        return Opened(Changed(snapshot), tuple(efforts), inner_products, None)

    return open_it


def inner_products(queries: np.ndarray) -> np.ndarray:
    return queries @ MATERIAL.vectors.T


BY_KIND = {kind: registered(kind) for kind in KINDS}
BY_KIND["ivf-pq with each label in two lists"] = registered("ivf-pq", ivf_copies=2)
WITH_A_MEMORY = {f"{kind} with a memory": with_a_memory(kind) for kind in ("hnsw", "pq-fastscan")}
WITH_A_MEMORY["hnsw with a scanned memory"] = with_a_memory("hnsw", "pq-fastscan")
CHANGED = {
    f"{kind} with {what}": changed(kind, *counts)
    for kind in ("flat", "hnsw")
    for what, counts in {"added labels": (200, 0), "removed labels": (0, 90)}.items()
}
CASES = BY_KIND | WITH_A_MEMORY | CHANGED
# Scores of these are sums along paths: no short formula gives them, and FAISS does not read them.
BY_PATHS = {"label-tree", "learned-graph"}


def all_but(*left_out: Iterable[str]) -> pytest.MarkDecorator:
    """The test is of every case but these."""
    cases = [case for case in CASES if case not in set().union(*left_out)]
    return pytest.mark.parametrize("opened", cases, indirect=True, scope="module")


@pytest.fixture(scope="module", params=list(CASES))
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return CASES[request.param](tmp_path_factory.mktemp("index"))


def each_effort(opened: Opened, queries: np.ndarray, k: int) -> list[Hits]:
    return [opened.index.search(queries, k, effort) for effort in opened.efforts]


@pytest.mark.parametrize("k", [1, 10, 100, N_LABELS, N_LABELS + 50])
def test_rows_are_unique_real_and_sorted_by_score(opened: Opened, k: int) -> None:
    for hits in each_effort(opened, QUERIES[:40], k):
        assert hits.rows.shape == hits.scores.shape == (40, min(k, N_LABELS))
        assert (hits.rows.dtype, hits.scores.dtype) == (np.int64, np.float32)
        assert all(len(set(rows)) == len(rows) for rows in hits.rows.tolist())
        assert ((hits.rows >= 0) & (hits.rows < N_LABELS)).all()
        assert np.isfinite(hits.scores).all()
        assert (np.diff(hits.scores, axis=1) <= 0).all()


def test_an_index_says_what_it_holds(opened: Opened) -> None:
    assert (opened.index.dim, opened.index.n_rows) == (DIM, N_LABELS)


@all_but(BY_PATHS, WITH_A_MEMORY)
def test_scores_are_those_of_the_rows_named(opened: Opened) -> None:
    assert opened.truth is not None
    scores = opened.truth(QUERIES)
    for hits in each_effort(opened, QUERIES, 10):
        expected = np.take_along_axis(scores, hits.rows, axis=1)
        np.testing.assert_allclose(hits.scores, expected, atol=LOOSE)


def test_exact_is_exhaustive(opened: Opened) -> None:
    hits = opened.index.search(QUERIES, 20, EXACT)
    if opened.truth is not None:
        best = -np.sort(-opened.truth(QUERIES), axis=1)[:, :20]
        np.testing.assert_allclose(hits.scores, best, atol=LOOSE)
    for other in each_effort(opened, QUERIES, 20) if opened.prunes else ():
        assert (other.scores <= hits.scores + 1e-6).all()


def test_the_most_effort_finds_nearly_everything(opened: Opened) -> None:
    exact, last = (opened.index.search(QUERIES, 10, name) for name in (EXACT, opened.efforts[-2]))
    assert (last.scores[:, -1] >= exact.scores[:, -1] - LOOSE).mean() > 0.97


@pytest.mark.parametrize("k", [1, 10, 40])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_answers_do_not_depend_on_the_batch(opened: Opened, size: int, k: int) -> None:
    for effort in opened.efforts:
        whole = opened.index.search(QUERIES, k, effort)
        for start in range(0, N_QUERIES, size):
            part = opened.index.search(QUERIES[start : start + size], k, effort)
            np.testing.assert_array_equal(part.rows, whole.rows[start : start + size])
            np.testing.assert_array_equal(part.scores, whole.scores[start : start + size])


def test_eight_threads_get_the_answers_of_one(opened: Opened) -> None:
    expected = each_effort(opened, QUERIES, 10)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: each_effort(opened, QUERIES, 10), range(16)))
    for answer in answers:
        for hits, wanted in zip(answer, expected, strict=True):
            np.testing.assert_array_equal(hits.rows, wanted.rows)
            np.testing.assert_array_equal(hits.scores, wanted.scores)


@all_but(BY_PATHS, WITH_A_MEMORY, CHANGED)
def test_a_loaded_index_answers_as_a_mapped_one(opened: Opened) -> None:
    assert opened.loaded is not None
    loaded = opened.loaded()
    for effort, hits in zip(opened.efforts, each_effort(opened, QUERIES, 10), strict=True):
        again = loaded.search(QUERIES, 10, effort)
        np.testing.assert_array_equal(again.rows, hits.rows)
        np.testing.assert_array_equal(again.scores, hits.scores)


def test_an_empty_batch_gives_an_empty_answer(opened: Opened) -> None:
    for hits in each_effort(opened, np.empty((0, DIM), np.float32), 10):
        assert hits.rows.shape == hits.scores.shape == (0, 10)


def test_a_zero_query_gets_an_answer_of_its_own(opened: Opened) -> None:
    """Alone or among others; it says nothing about any label, so which rows is left open."""
    queries = QUERIES[:5].copy()
    queries[2] = 0
    for effort in opened.efforts:
        hits = opened.index.search(queries, 10, effort)
        assert len(set(hits.rows[2].tolist())) == 10
        assert ((hits.rows >= 0) & (hits.rows < N_LABELS)).all()
        assert np.isfinite(hits.scores).all()
        alone = opened.index.search(queries[2:3], 10, effort)
        np.testing.assert_array_equal(alone.rows[0], hits.rows[2])
        others = opened.index.search(QUERIES[:5], 10, effort)
        np.testing.assert_array_equal(np.delete(others.rows, 2, 0), np.delete(hits.rows, 2, 0))


@pytest.mark.parametrize("length", [1e-44, 1e-20, MAX_QUERY_LENGTH])
def test_a_query_of_any_length_in_bounds_gets_finite_scores(opened: Opened, length: float) -> None:
    queries = (QUERIES[:40].astype(np.float64) * length).astype(np.float32)
    for hits in each_effort(opened, queries, 10):
        assert all(len(set(rows)) == 10 for rows in hits.rows.tolist())
        assert ((hits.rows >= 0) & (hits.rows < N_LABELS)).all()
        assert np.isfinite(hits.scores).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_is_refused(opened: Opened, value: float) -> None:
    queries = QUERIES[:3].copy()
    queries[1, 2] = value
    for effort in opened.efforts:
        with pytest.raises(ValueError, match="NaN or an infinite"):
            opened.index.search(queries, 10, effort)


def test_wrong_width_k_below_one_and_unknown_efforts_are_refused(opened: Opened) -> None:
    with pytest.raises(ValueError, match=f"vectors of {DIM}"):
        opened.index.search(np.ones((1, DIM + 1), np.float32), 10, EXACT)
    with pytest.raises(ValueError, match="k is 0"):
        opened.index.search(QUERIES, 0, EXACT)
    with pytest.raises(KeyError):
        opened.index.search(QUERIES, 10, "warp")


def test_a_search_leaves_its_queries_untouched(opened: Opened) -> None:
    before = QUERIES.copy()
    each_effort(opened, QUERIES, 10)
    np.testing.assert_array_equal(QUERIES, before)


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_same_material_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    contents = []
    for name in ("once", "again"):
        folder = tmp_path / name
        folder.mkdir()
        info = built(kind, folder)
        assert sorted(path.name for path in folder.iterdir()) == sorted(info.files)
        contents.append([(folder / file).read_bytes() for file in info.files])
    assert contents[0] == contents[1]


@pytest.mark.parametrize("n_labels", [1, 2, 20])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_handful_of_labels_is_enough(kind: str, n_labels: int, tmp_path: Path) -> None:
    few = MATERIAL.labels[:, :n_labels]
    vectors = np.ascontiguousarray(MATERIAL.vectors[:n_labels])
    graph = MATERIAL.graph
    assert graph is not None
    graph = replace(graph, edges=np.minimum(graph.edges, n_labels))
    graph = replace(graph, weights=graph.weights * (graph.edges < n_labels))
    material = Material(vectors, BIAS, MATERIAL.points, csr_array(few), graph)
    config = CONFIG.model_copy(update={"kind": kind})
    info = build_label_index(material, config, tmp_path)
    grid = KINDS[kind].grid(config, n_labels)
    index = open_label_index(tmp_path, info, DIM, {"last": grid[-1], EXACT: {}})
    for effort in ("last", EXACT):
        hits = index.search(QUERIES[:9], 30, effort)
        assert np.array_equal(np.sort(hits.rows, axis=1), [list(range(n_labels))] * 9)


@pytest.mark.parametrize("n", [0, 1, N_QUERIES])
@pytest.mark.parametrize("size", [0, 1, 7, N_LABELS])
def test_among_some_rows_the_best_are_found_as_an_exhaustive_search_ranks_them(
    opened: Opened, n: int, size: int
) -> None:
    queries = QUERIES[:n]
    ranked = opened.index.search(queries, N_LABELS, EXACT)
    held = np.sort(opened.index.search(QUERIES[:1], N_LABELS, EXACT).rows[0])
    rows = np.sort(np.random.default_rng(size).permutation(held)[:size])
    found = opened.index.search_among(queries, rows, 5)
    width = min(5, size)
    assert found.rows.shape == found.scores.shape == (n, width)
    for i in range(n):
        kept = np.isin(ranked.rows[i], rows)
        assert set(found.rows[i]) <= set(rows)
        assert len(set(found.rows[i])) == width
        np.testing.assert_allclose(
            found.scores[i], ranked.scores[i][kept][:width], rtol=1e-4, atol=1e-5
        )
