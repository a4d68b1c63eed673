"""The second stage of a run: what it is made of, and when it is left out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models import stages
from models.encoders.build import embed
from models.index.indexed import memory_of, second_stage_of
from models.rerank.build import build_rerank
from models.rerank.examples import Scorer
from models.rerank.knowledge import count_knowledge
from models.stages import TrainingJob
from models.trained import load_model
from models.tune.goal import Goal
from models.tune.tuning import Request
from service.core.engine import Engine
from service.core.types import Query
from tests.support.tiny_job import write_tiny_job

QUICK = (
    *("train.epochs=2", "method.hard_negatives=0", "rerank.kind=trees", "rerank.trees=15"),
    *("rerank.leaves=4", "rerank.depth=10", "rerank.rate=0.2"),
)


def indexed(folder: Path, *overrides: str) -> TrainingJob:
    job = TrainingJob.open(write_tiny_job(folder, *QUICK, *overrides), folder / "var")
    for stage in (stages.run_train, stages.run_export, stages.run_index):
        stage(job)
    return job


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return indexed(tmp_path_factory.mktemp("job"), "memory.kind=auto")


def test_every_effort_but_the_quickest_has_trees_and_a_width_for_the_memory(job):
    stage = second_stage_of(job.run)
    assert stage is not None
    assert {name: params["rerank_depth"] for name, params in stage.params.items()} == {
        "balanced": 10,
        "thorough": 10,
        "exact": 10,
    }
    assert stage.params["balanced"]["memory_ef_search"] > 0


def test_the_memory_is_read_by_the_trees_and_blended_with_nothing(job):
    memory, stage = memory_of(job.run), second_stage_of(job.run)
    assert memory is not None
    assert memory.weight == 0
    assert "memory_nearest" in stage.info.features


def test_the_trees_learnt_from_all_points_that_the_folds_held_out(job):
    labelled = np.diff(job.training_labels.indptr) > 0
    assert second_stage_of(job.run).info.params["queries"] == labelled.sum()


def test_its_files_are_in_the_run(job):
    info = second_stage_of(job.run).info
    names = [info.graph, *info.files, info.calibration.file]
    assert all((job.run.folder / name).is_file() for name in names)


def test_without_a_memory_no_feature_needs_one(tmp_path):
    job = indexed(tmp_path, "rerank.scores=validation")
    info = second_stage_of(job.run).info
    assert not any(name.startswith("memory") for name in info.features)
    assert info.params["queries"] == len(job.parts.validation_rows)
    assert not (job.run.folder / "folds").exists()


def test_a_stage_that_does_not_gain_is_left_out(job):
    """The ranking before is perfect."""
    config = job.run.config
    auto = config.model_copy(update={"rerank": config.rerank.model_copy(update={"kind": "auto"})})
    model = load_model(job.run)
    knowledge = count_knowledge(job.training_labels, [[]] * job.training_labels.shape[1], 1)
    scorer = Scorer(model.servable().label_vectors, knowledge, None, 0.05)
    validation = job.validation.of(embed(model.encoder, job.corpus.validation))
    best = np.argsort(-validation.truth.toarray(), axis=1)
    outcome = build_rerank(
        *(scorer, validation, job.corpus.validation, lambda names: None, best),
        replace(job.run, config=auto),
    )
    assert not outcome.used
    assert "info" not in outcome.record


def test_a_sealed_run_answers_with_its_trees_where_the_effort_has_them(job):
    """The quickest effort orders by the index, the others by new scores, in the same sense."""
    engine = Engine.open(stages.run_release(job), device="cpu")
    texts = job.dataset.test.titles
    truth = job.dataset.test.labels.toarray() > 0
    precision = {}
    for effort in ("fast", "balanced", "exact"):
        answers = engine.predict([Query(text, 5, effort) for text in texts]).predictions
        firsts = [answer.rows[0] for answer in answers]
        precision[effort] = truth[np.arange(len(texts)), firsts].mean()
        assert all((np.diff(answer.scores) <= 0).all() for answer in answers)
    assert precision["balanced"] != precision["fast"]
    assert precision["exact"] == pytest.approx(precision["balanced"], abs=0.03)
    assert engine.manifest.quality.metrics["p1"] == pytest.approx(
        100 * precision["balanced"], abs=0.1
    )


def test_a_tuned_run_keeps_its_trees_and_their_memory(job):
    """The goal is within reach of any machine: the tuning seals the run with another index."""
    goal = Goal(p99_us=1e7, recall=0.5)
    report = stages.run_tune(job, Request(goal, kinds=("flat",)))
    assert report.chosen is not None
    engine = Engine.open(job.bundles, device="cpu")
    manifest = engine.manifest
    assert manifest.index.kind == "flat"
    assert manifest.memory is not None
    assert manifest.memory.weight == 0
    efforts = {
        point.name: point.params.get("rerank_depth", 0) for point in manifest.operating_points
    }
    assert efforts == {"fast": 0, "balanced": 10, "thorough": 10, "exact": 10}
    [answer] = engine.predict([Query(job.dataset.test.titles[0], 5, "balanced")]).predictions
    assert len(answer.rows) == 5
