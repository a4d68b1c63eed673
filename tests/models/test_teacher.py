"""Distillation: what a student's targets are, and where they may come from."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

from models import stages, teacher
from models.config import TeacherConfig
from models.errors import RunError
from models.runs import TEACHER_FILE
from service.errors import BundleNotFound
from tests.support.tiny_job import write_tiny_job


def test_ignored_cells_get_no_target():
    labels, taught = csr_array([[1.0, 0.0, 0.0]]), csr_array([[0.5, 0.2, 0.6]])
    ignored = csr_array([[0.0, 0.0, 1.0]])
    blended = teacher.soft_targets(labels, taught, ignored, 0.5)
    assert blended.toarray().tolist() == [[0.75, 0.1, 0.0]]
    assert blended.nnz == 2


def test_the_whole_weight_on_the_teacher_forgets_relevance():
    labels, taught = csr_array([[1.0, 0.0]]), csr_array([[0.0, 0.4]])
    blended = teacher.soft_targets(labels, taught, csr_array((1, 2)), 1.0)
    assert blended.toarray().tolist() == [[0.0, 0.4]]


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A tiny trained and sealed job, to learn from."""
    folder = tmp_path_factory.mktemp("teacher")
    config = write_tiny_job(folder)
    bundle = stages.run_all(config, folder / "var")
    return stages.TrainingJob.open(config, folder / "var"), bundle


@pytest.mark.parametrize("kind", ["run", "bundle"])
def test_run_and_bundle_both_teach_probabilities(taught, kind, tmp_path):
    job, bundle = taught
    path = job.run.folder if kind == "run" else bundle
    config = TeacherConfig(path=str(path), top=7)
    rows = job.parts.train_rows[:50]
    found = teacher.teacher_probabilities(
        config, job.dataset, rows, tmp_path / TEACHER_FILE, tmp_path
    )
    assert found.shape == (50, len(job.dataset.labels))
    assert (np.diff(found.indptr) == 7).all()
    assert found.data.min() >= 0
    assert found.data.max() <= 1
    # It knows its training points: what it holds likeliest is nearly always right.
    best = [found[[row]].toarray().argmax() for row in range(50)]
    truth = job.dataset.train.labels[rows].toarray() > 0
    assert np.mean([truth[row, label] for row, label in enumerate(best)]) > 0.6


def test_a_student_trains_on_soft_targets_and_asks_once(taught, tmp_path, monkeypatch):
    job, _ = taught
    config = write_tiny_job(tmp_path, f'teacher.path="{job.run.folder}"', "train.epochs=2")
    student = stages.TrainingJob.open(config, tmp_path / "var")
    stages.run_train(student)
    assert (student.run.folder / TEACHER_FILE).is_file()
    monkeypatch.setattr(teacher, "_ask_run", lambda *_: pytest.fail("asked again"))
    rows = student.parts.train_rows
    keep = student.run.folder / TEACHER_FILE
    found = teacher.teacher_probabilities(
        student.run.config.teacher, student.dataset, rows, keep, tmp_path
    )
    assert found.shape[0] == len(rows)


def test_a_path_that_is_neither_is_an_error(taught, tmp_path):
    job, _ = taught
    config = TeacherConfig(path=str(tmp_path / "nothing"))
    with pytest.raises(BundleNotFound, match="nothing"):
        teacher.teacher_probabilities(
            config, job.dataset, job.parts.train_rows, tmp_path / TEACHER_FILE, tmp_path
        )


def test_other_data_cannot_teach(taught, tmp_path):
    job, _ = taught
    other = replace(job.dataset, sha256="0" * 64)
    config = TeacherConfig(path=str(job.run.folder))
    with pytest.raises(RunError, match="other data"):
        teacher.teacher_probabilities(
            config, other, job.parts.train_rows, tmp_path / TEACHER_FILE, tmp_path
        )
