"""The folds of a job: models that score, for the second stage, points they never trained on."""

from pathlib import Path

import numpy as np
import pytest

from models import stages
from models.data.prepare import point_groups
from models.stages import TrainingJob
from tests.support.tiny_job import write_tiny_job

QUICK = ("train.epochs=2", "method.hard_negatives=0", "rerank.kind=trees")


def open_job(folder: Path, *overrides: str) -> TrainingJob:
    return TrainingJob.open(write_tiny_job(folder, *QUICK, *overrides), folder / "var")


def test_folds_hold_out_each_training_point_once_with_its_series(tmp_path):
    job = open_job(tmp_path, "rerank.folds=3")
    held = [fold.parts.held_rows for fold in job.folds]
    assert np.array_equal(np.sort(np.concatenate(held)), job.parts.train_rows)
    series = point_groups(job.run.config, job.dataset.train)
    for fold in job.folds:
        parts = fold.parts
        assert not np.isin(series[parts.held_rows], series[parts.train_rows]).any()
        assert np.array_equal(parts.validation_rows, job.parts.validation_rows)


@pytest.mark.parametrize("setting", ["rerank.kind=none", "rerank.scores=validation"])
def test_a_job_that_needs_no_scores_of_training_points_has_no_folds(tmp_path, setting):
    assert open_job(tmp_path, setting).folds == []


def test_each_fold_is_trained_once_beside_the_model(tmp_path):
    job = open_job(tmp_path, "rerank.fold_epochs=0.5")
    stages.run_train(job)
    folders = [job.run.folder, *(fold.run.folder for fold in job.folds)]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert len(set(weights)) == 3
    epochs = [len((folder / "metrics.jsonl").read_text().splitlines()) for folder in folders]
    assert epochs == [2, 1, 1]
    (folders[2] / "model.safetensors").write_bytes(b"kept")
    stages.run_train(open_job(tmp_path, "rerank.fold_epochs=0.5"))
    assert (folders[2] / "model.safetensors").read_bytes() == b"kept"
