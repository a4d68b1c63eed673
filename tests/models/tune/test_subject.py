"""What searches are held to: the model's own truth, on queries in any order, with a memory too."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

from models import stages
from models.config import IndexConfig
from models.errors import RunError
from models.index.efforts import exact_index
from models.index.kind import Material
from models.quality.ranking import EvaluationSet
from models.tune.candidate import Build, Candidate
from models.tune.goal import Goal
from models.tune.subject import Judge, Searched, Subject
from models.tune.tuning import Request, kinds_for, scored_by_vectors
from service.bundle.verify import read_manifest, resolve
from service.core.types import Hits
from tests.support.tiny_job import write_tiny_job

N, DIM, LABELS = 120, 8, 40


@pytest.fixture
def subject(tmp_path):
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((LABELS, DIM)).astype(np.float32)
    queries = rng.standard_normal((N, DIM)).astype(np.float32)
    best = (queries @ vectors.T).argmax(axis=1)
    truth = csr_array((np.ones(N, np.float32), (np.arange(N), best)), shape=(N, LABELS))
    nothing = np.empty((0, DIM), np.float32), csr_array((0, LABELS), dtype=np.float32)
    filtered = np.empty((0, 2), np.int64)
    return Subject(
        tmp_path,
        IndexConfig(),
        Material(vectors, 0.0, *nothing),
        EvaluationSet(queries, truth, filtered),
    )


class Backwards:
    """A model of its own: it ranks the labels from the worst."""

    def __init__(self, vectors):
        self.exact = exact_index(-vectors)

    def search(self, queries, k, effort):
        return Hits(self.exact.search(queries, k, "exact").rows, np.zeros((len(queries), k)))


def measure(judge, index, own_scores):
    candidate = Candidate(Build("tree"))
    truth = judge.truth_of(index, own_scores)
    searched = Searched(candidate, index, "exact", truth, own_scores, 1)
    return judge.measure(searched, N, carefully=False)


def test_exact_search_has_full_recall_and_loses_nothing(subject):
    judge = Judge(subject)
    found = measure(judge, exact_index(subject.material.vectors), own_scores=False)
    assert (found.recall, found.recall_error, found.p_at_1, found.p_at_1_loss) == (1, 0, 100, 0)
    assert found.timing.p50 <= found.timing.p99 <= found.timing.clocked_p99


def test_a_kind_of_its_own_is_complete_by_its_own_scores_but_loses_precision(subject):
    found = measure(Judge(subject), Backwards(subject.material.vectors), own_scores=True)
    assert (found.recall, found.p_at_1, found.p_at_1_loss) == (1, 0, 100)


def test_where_the_vectors_do_not_score_the_loss_is_against_the_own_scores(subject):
    judge = Judge(replace(subject, vectors_score=False))
    found = measure(judge, Backwards(subject.material.vectors), own_scores=True)
    assert (found.recall, found.p_at_1, found.p_at_1_loss) == (1, 0, 0)


def test_a_random_order_keeps_queries_truth_and_filter_together(subject):
    pairs = np.stack(subject.validation.truth.nonzero(), axis=1).astype(np.int64)
    validation = replace(subject.validation, filter_pairs=pairs)
    mixed = replace(subject, validation=validation).shuffled()
    assert not np.array_equal(mixed.queries, subject.queries)
    best = (mixed.queries @ mixed.material.vectors.T).argmax(axis=1)
    truth, pairs = mixed.validation.truth, mixed.validation.filter_pairs
    assert truth[np.arange(N), best].sum() == N
    assert truth[pairs[:, 0], pairs[:, 1]].sum() == N
    index = exact_index(mixed.material.vectors)
    assert not (mixed.rank(index, "exact", N)[:, 0] == best).any()


def test_the_digest_is_of_the_model_not_of_the_folder(subject, tmp_path):
    moved = replace(subject, run_folder=tmp_path / "elsewhere")
    other = replace(subject, validation=subject.validation.of(subject.queries + 1))
    assert subject.digest() == moved.digest() != other.digest()


def test_a_run_with_a_memory_is_tuned_with_it(tmp_path, brief_timing):
    job = stages.TrainingJob.open(
        write_tiny_job(tmp_path, 'memory.kind="queries"'), tmp_path / "var"
    )
    stages.run_train(job)
    request = Request(Goal(recall=0.9), kinds=("hnsw",))
    with pytest.raises(RunError, match="has no memory yet"):
        stages.run_tune(job, request)
    stages.run_export(job)
    stages.run_index(job)
    report = stages.run_tune(job, request)
    assert report.chosen is not None
    manifest = read_manifest(resolve(job.bundles))
    balanced = next(point for point in manifest.operating_points if point.name == "balanced")
    assert manifest.memory is not None
    assert "memory_ef_search" in balanced.params
    assert stages.run_check(job, job.bundles, None).broken is None


def test_only_kinds_that_the_configuration_allows_are_tried(tmp_path):
    config = write_tiny_job(tmp_path)
    assert {"flat", "hnsw", "pq-fastscan"} <= set(kinds_for(config, ()))
    assert scored_by_vectors(config)
