"""The memory: what is remembered, what is chosen (against a slow twin), what is measured."""

import math
import shutil
from dataclasses import asdict, replace
from itertools import product

import numpy as np
import pytest
from scipy.sparse import csr_array

from models.config import IndexConfig
from models.errors import ReleaseError
from models.index.calibrate import DEPTH, calibrate
from models.index.efforts import exact_index
from models.index.efforts import measure as measure_labels
from models.index.kind import Material
from models.index.memory import (
    MEMORY_FILES,
    Grid,
    LabelIndexFacts,
    _cross_fitted_gains,
    choose,
    measure,
    memory_recall,
    remember,
    write_memory,
)
from models.index.registry import build_label_index
from models.quality.ranking import EvaluationSet
from service.bundle.manifest import EXACT, IndexInfo, MemoryInfo
from service.core.index.augmented import AugmentedIndex, Blend
from service.core.index.faiss_index import open_faiss
from service.core.index.memory_labels import open_memory_labels
from service.core.types import Hits

N_LABELS, N_MEMORY, N_QUERIES, DIM = 80, 900, 240, 16
BIAS = -3.0
CONFIG = IndexConfig(m=16, recall_fast=0.8, recall_balanced=0.9, recall_thorough=0.95)
SMALL = Grid(weights=(0.1, 0.5), temperatures=(0.05, 0.2), neighbours=(3, 20))


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class World:
    """Queries cluster around topics, and a topic has two labels.

    `helpful`: the memory has them right and the label vectors are half noise; else the label
    vectors are right and the memory's labels are drawn at random.
    """

    def __init__(self, *, helpful: bool) -> None:
        rng = np.random.default_rng(3)
        topics = unit(rng.standard_normal((40, DIM)))
        of_topic = np.stack([rng.choice(N_LABELS, 2, replace=False) for _ in topics])

        def points(n):
            topic = rng.integers(len(topics), size=n)
            rows = unit(topics[topic] + 0.1 * rng.standard_normal((n, DIM)))
            cells = (np.repeat(np.arange(n), 2), of_topic[topic].ravel())
            return rows, csr_array((np.ones(2 * n, np.float32), cells), shape=(n, N_LABELS))

        self.memory_vectors, self.memory_labels = points(N_MEMORY)
        self.queries, self.truth = points(N_QUERIES)
        self.validation = EvaluationSet(self.queries, self.truth)
        means = self.memory_labels.T @ self.memory_vectors + rng.standard_normal((N_LABELS, DIM))
        if helpful:
            means += 10 * rng.standard_normal(means.shape)
        else:
            self.memory_labels = self.memory_labels[rng.permutation(N_MEMORY)]
        self.label_vectors = 4 * unit(means)

    def found(self, k=30):
        return exact_index(self.label_vectors).search(self.queries, k, EXACT)

    def recalled(self, k=20):
        return exact_index(self.memory_vectors).search(self.queries, k, EXACT)


@pytest.fixture(scope="module")
def helpful():
    return World(helpful=True)


@pytest.fixture(scope="module")
def useless():
    return World(helpful=False)


def test_only_queries_with_a_label_are_remembered_whatever_the_entries_are():
    labels = csr_array(np.array([[0, 5, -2], [0, 0, 0], [0.1, 0, 0]]))
    before = labels.toarray()
    memory = remember(np.eye(3, dtype=np.float32), labels, "one")
    assert memory.vectors.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert memory.labels.offsets.tolist() == [0, 2, 3]
    assert memory.labels.labels.tolist() == [1, 2, 0]
    assert memory.labels.values.tolist() == [1, 1, 1]
    np.testing.assert_array_equal(labels.toarray(), before)


def test_stored_zeros_are_no_labels():
    labels = csr_array((np.array([0.0, 1.0]), np.array([0, 1]), np.array([0, 1, 2])), shape=(2, 2))
    memory = remember(np.eye(2, dtype=np.float32), labels, "share")
    assert (len(memory.vectors), memory.labels.labels.tolist()) == (1, [1])


def test_nothing_to_remember_is_refused():
    with pytest.raises(ValueError, match="nothing to remember"):
        remember(np.eye(2, dtype=np.float32), csr_array((2, 5), dtype=np.float32), "one")


def test_what_is_written_is_what_the_service_reads(helpful, tmp_path):
    memory = remember(helpful.memory_vectors, helpful.memory_labels, "share")
    write_memory(memory, IndexConfig(kind="flat"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(MEMORY_FILES)
    paths = [tmp_path / name for name in MEMORY_FILES[1:]]
    read = open_memory_labels(paths, N_MEMORY, N_LABELS)
    for name in ("offsets", "labels", "values"):
        np.testing.assert_array_equal(getattr(read, name), getattr(memory.labels, name))


def slow_figures(world, memory, weight, temperature, neighbours, filtered):
    """P@1, P@5, nDCG@5 in percent, one query and one label at a time."""
    found, recalled = world.found(), world.recalled()
    figures = []
    for query in range(N_QUERIES):
        scores = {}
        for row, logit in zip(found.rows[query], found.scores[query], strict=True):
            scores[int(row)] = (1 - weight) / (1 + math.exp(-(float(logit) + BIAS)))
        cosines = [float(cosine) / temperature for cosine in recalled.scores[query, :neighbours]]
        total = sum(math.exp(cosine) for cosine in cosines)
        for neighbour, cosine in zip(recalled.rows[query], cosines, strict=False):
            part = slice(*memory.labels.offsets[neighbour : neighbour + 2])
            for row, value in zip(
                memory.labels.labels[part], memory.labels.values[part], strict=True
            ):
                mass = weight * math.exp(cosine) / total * float(value)
                scores[int(row)] = scores.get(int(row), 0.0) + mass
        for row in [row for at, row in filtered if at == query]:
            scores.pop(row, None)
        ranked = sorted(scores, key=lambda row: (-scores[row], row))[:5]
        true = set(world.truth[[query]].indices.tolist())
        hits = [row in true for row in ranked]
        gain = sum(hit / math.log2(place + 2) for place, hit in enumerate(hits))
        best = sum(1 / math.log2(place + 2) for place in range(min(5, len(true))))
        figures.append((hits[0], sum(hits) / 5, gain / best))
    return 100 * np.mean(figures, axis=0)


@pytest.mark.parametrize("filtered", [[], [(0, 3), (0, 7), (5, 1)]])
def test_every_trial_equals_its_slow_twin(helpful, filtered):
    memory = remember(helpful.memory_vectors, helpful.memory_labels, "share")
    true = [(at, int(row)) for at, row in zip(*helpful.truth.nonzero(), strict=True)][:9]
    pairs = [*filtered, *true] if filtered else []
    choice = choose(
        helpful.found(),
        helpful.recalled(),
        memory.labels,
        replace(helpful.validation, filter_pairs=np.array(pairs, np.int64).reshape(-1, 2)),
        BIAS,
        SMALL,
    )
    settings = list(product(SMALL.neighbours, SMALL.temperatures, SMALL.weights))
    assert len(choice.trials) == 1 + len(settings)
    for trial in choice.trials:
        slow = slow_figures(
            helpful, memory, trial.weight, trial.temperature or 1, trial.neighbours or 1, pairs
        )
        assert (trial.p_at_1, trial.p_at_5, trial.ndcg_at_5) == pytest.approx(tuple(slow))
    assert choice.chosen == max(choice.trials, key=lambda trial: trial.ndcg_at_5)


def chosen(world, grid=SMALL):
    memory = remember(world.memory_vectors, world.memory_labels, "one")
    return choose(world.found(), world.recalled(), memory.labels, world.validation, BIAS, grid)


def test_a_memory_that_helps_is_used(helpful):
    choice = chosen(helpful)
    assert choice.used
    assert choice.gain > 2 * choice.standard_error > 0


def test_queries_of_a_series_make_a_gain_less_sure(helpful):
    """The queries of one topic are right or wrong together."""
    _, topics = np.unique(helpful.validation.truth.toarray(), axis=0, return_inverse=True)
    memory = remember(helpful.memory_vectors, helpful.memory_labels, "one")
    found, recalled = helpful.found(), helpful.recalled()
    alone, together = (
        choose(
            found,
            recalled,
            memory.labels,
            replace(helpful.validation, known_groups=groups),
            BIAS,
            SMALL,
        )
        for groups in (None, topics.astype(np.int64))
    )
    assert together.gain == pytest.approx(alone.gain, abs=2 * alone.standard_error)
    assert together.standard_error > 1.2 * alone.standard_error


def test_a_memory_that_says_nothing_is_left_out_unless_demanded(useless):
    choice = chosen(useless)
    assert not choice.used
    assert choice.chosen == choice.trials[0]
    demanded = chosen(useless, replace(SMALL, demanded=True))
    assert demanded.used
    assert demanded.chosen == max(demanded.trials[1:], key=lambda trial: trial.ndcg_at_5)


def test_choosing_leaves_its_inputs_untouched_and_its_report_is_plain(helpful):
    memory = remember(helpful.memory_vectors, helpful.memory_labels, "one")
    found, recalled = helpful.found(), helpful.recalled()
    arrays = (found.rows, found.scores, recalled.rows, recalled.scores, memory.labels.values)
    before = [array.copy() for array in arrays]
    report = asdict(choose(found, recalled, memory.labels, helpful.validation, BIAS, SMALL))
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert type(report["gain"]) is type(report["chosen"]["p_at_1"]) is float


def test_an_empty_grid_is_refused(helpful):
    memory = remember(helpful.memory_vectors, helpful.memory_labels, "one")
    with pytest.raises(ValueError, match="grid is empty"):
        choose(
            helpful.found(),
            helpful.recalled(),
            memory.labels,
            helpful.validation,
            BIAS,
            Grid(weights=()),
        )


LABEL_INFO = IndexInfo(
    kind="hnsw", files=["index.faiss"], metric="inner_product", params={}, n_rows=N_LABELS
)
INFO = MemoryInfo(
    kind="hnsw",
    files=list(MEMORY_FILES),
    n_rows=N_MEMORY,
    params={"m": 16},
    neighbours=20,
    depth=30,
    weight=0.3,
    temperature=0.1,
    logit_bias=BIAS,
)


@pytest.fixture(scope="module")
def written(helpful, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    memory = remember(helpful.memory_vectors, helpful.memory_labels, "one")
    write_memory(memory, CONFIG, folder)
    vectors = helpful.label_vectors
    empty = csr_array((0, N_LABELS), dtype=np.float32)
    build_label_index(Material(vectors, BIAS, vectors[:0], empty), CONFIG, folder)
    return folder, memory


def test_recall_of_the_memory_index_rises_to_nearly_one(helpful, written):
    folder, memory = written
    efforts = {str(ef): {"ef_search": ef} for ef in (4, 40, 400)}
    index = open_faiss(folder / MEMORY_FILES[0], DIM, N_MEMORY, efforts)
    exact = exact_index(memory.vectors).search(helpful.queries, 10, EXACT)
    recalls = [memory_recall(index, effort, helpful.validation, exact)[0] for effort in efforts]
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.97 < 0.99 < recalls[-1]


def test_equal_queries_stand_for_one_another_in_the_recall():
    """Twelve copies of one vector: whichever ten are found, nothing is missed."""
    rows = np.repeat(np.eye(2, dtype=np.float32)[:1], 12, axis=0)
    exact = exact_index(rows).search(rows[:1], 10, EXACT)
    others = Hits(exact.rows + 2, exact.scores)
    asked = EvaluationSet(rows[:1], csr_array((1, 12)))
    assert memory_recall(exact_index(rows), EXACT, asked, others) == (1.0, 0.0)


def measured(world, written, recalls, points):
    folder, memory = written
    label_index = LabelIndexFacts(world.label_vectors, LABEL_INFO, points)
    return measure(folder, label_index, memory, INFO, recalls, world.validation)


@pytest.fixture(scope="module")
def label_points(helpful, written):
    folder, vectors = written[0], helpful.label_vectors
    return measure_labels(folder, LABEL_INFO, CONFIG, vectors, helpful.validation)


def test_each_effort_gets_a_search_width_of_its_own_for_the_memory(helpful, written, label_points):
    points = measured(
        helpful, written, {"fast": 0.8, "balanced": 0.95, "thorough": 0.99}, label_points
    )
    assert [point.name for point in points] == ["fast", "balanced", "thorough", "exact"]
    for plain, point in zip(label_points[:3], points[:3], strict=True):
        assert point.params["ef_search"] == plain.params["ef_search"]
    widths = [point.params["memory_ef_search"] for point in points[:3]]
    assert widths == sorted(widths)
    assert points[3].params == {}
    assert points[2].recall_at_10 >= 0.95
    assert points[3].recall_at_10 >= 0.98  # both indexes store half precision
    assert points[3].p_at_1 > label_points[3].p_at_1


def test_a_gain_is_judged_on_the_half_that_did_not_choose():
    """Trial 1 is best on the even queries alone, trial 2 on the odd ones: neither holds up."""
    each = np.array([[0.5] * 4, [1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
    groups = np.array([0, 1, 0, 1])  # so that the halves are these, in every draw
    assert _cross_fitted_gains(each, groups) == pytest.approx([-0.5] * 4)


def test_a_recall_out_of_reach_is_refused_with_what_to_change(
    helpful, written, label_points, tmp_path
):
    folder, memory = written
    write_memory(memory, IndexConfig(m=2, ef_construction=2), tmp_path)
    shutil.copyfile(folder / "index.faiss", tmp_path / "index.faiss")
    with pytest.raises(ReleaseError, match=r"up to ef_search 1024 .* lower memory\.recall_"):
        measured(helpful, (tmp_path, memory), {"fast": 0.8, "thorough": 0.9999}, label_points)


def test_a_flat_memory_is_scanned_at_every_effort(helpful, written, label_points, tmp_path):
    folder, memory = written
    write_memory(memory, IndexConfig(kind="flat"), tmp_path)
    shutil.copyfile(folder / "index.faiss", tmp_path / "index.faiss")
    points = measure(
        tmp_path,
        LabelIndexFacts(helpful.label_vectors, LABEL_INFO, label_points),
        memory,
        INFO.model_copy(update={"kind": "flat"}),
        {},
        helpful.validation,
    )
    assert [point.params for point in points] == [point.params for point in label_points]


@pytest.mark.parametrize("values", ["one", "share"])
def test_isotonic_calibration_mends_blended_scores(helpful, values):
    memory = remember(helpful.memory_vectors, helpful.memory_labels, values)
    settings = Blend(weight=0.3, temperature=0.1, neighbours=20, depth=30, logit_bias=BIAS)
    index = AugmentedIndex(
        exact_index(helpful.label_vectors), exact_index(memory.vectors), memory.labels, settings
    )
    hits = index.search(helpful.queries, DEPTH, EXACT)
    fitted, info = calibrate(hits, helpful.validation, logit_bias=None)
    assert info.ece_after < info.ece_before
    served = fitted.apply(hits.scores)
    assert ((served >= 0) & (served <= 1)).all()
    assert (np.diff(served, axis=1) <= 0).all()
