"""The loop: repeatable, resumable, stops early, and says which step broke."""

import json

import pytest
import torch
from safetensors.torch import load_file

from models import loop, stages
from models.errors import RunError, TrainingError
from models.runs import CHECKPOINT_FILE, METRICS_FILE, MODEL_FILE
from tests.models.tiny import write_tiny_job


class Killed(BaseException):
    """Stands for a SIGKILL: nothing may catch it."""


def history(job):
    lines = (job.run.folder / METRICS_FILE).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(record["epoch"], record["loss"], record["validation_p_at_1"]) for record in records]


def job_in(folder, *overrides):
    folder.mkdir(exist_ok=True)
    return stages.Job.open(write_tiny_job(folder, *overrides), folder / "var")


def test_same_seed_gives_the_same_losses_and_weights(tmp_path):
    first, second = job_in(tmp_path / "a"), job_in(tmp_path / "b")
    stages.run_train(first)
    stages.run_train(second)
    assert history(first) == history(second)
    one, other = (load_file(job.run.folder / MODEL_FILE) for job in (first, second))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_another_seed_gives_other_losses(tmp_path):
    first, second = job_in(tmp_path / "a"), job_in(tmp_path / "b", "seed=6")
    stages.run_train(first)
    stages.run_train(second)
    assert history(first)[0] != history(second)[0]


def test_training_learns(tmp_path):
    job = job_in(tmp_path)
    stages.run_train(job)
    assert job.run.measured()["training"]["validation_p_at_1"] > 60
    assert not (job.run.folder / CHECKPOINT_FILE).exists()


@pytest.mark.parametrize("killed_at", [3, 20])
def test_a_killed_run_resumes_to_the_very_same_end(tmp_path, monkeypatch, killed_at):
    """Killed in mid-epoch, once before hard negatives are in use and once after."""
    whole = job_in(tmp_path / "whole", "train.checkpoint_seconds=1e-9")
    stages.run_train(whole)
    cut = job_in(tmp_path / "cut", "train.checkpoint_seconds=1e-9")
    step = loop._Loop._step

    def dying_step(self, picked):
        if self.progress.step == killed_at:
            raise Killed
        step(self, picked)

    monkeypatch.setattr(loop._Loop, "_step", dying_step)
    with pytest.raises(Killed):
        stages.run_train(cut)
    monkeypatch.setattr(loop._Loop, "_step", step)
    stages.run_train(cut)
    assert history(cut) == history(whole)
    ours, theirs = (load_file(job.run.folder / MODEL_FILE) for job in (cut, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    job = job_in(tmp_path)
    stages.run_train(job)
    monkeypatch.setattr(loop._Loop, "epoch", lambda self: pytest.fail("trained again"))
    stages.run_train(job)


def test_a_broken_checkpoint_is_an_error_not_a_fresh_start(tmp_path):
    job = job_in(tmp_path)
    (job.run.folder / CHECKPOINT_FILE).write_bytes(b"not safetensors")
    with pytest.raises(RunError, match="cannot be resumed from"):
        stages.run_train(job)


def test_patience_stops_a_run_that_no_longer_gains(tmp_path):
    job = job_in(tmp_path, "train.epochs=12", "train.patience=1", "train.encoder_lr=0.3")
    stages.run_train(job)
    training = job.run.measured()["training"]
    assert training["epochs"] < 12
    assert training["best_epoch"] == training["epochs"] - 1


def test_a_loss_that_is_not_a_number_names_the_step(tmp_path, monkeypatch):
    job = job_in(tmp_path)
    monkeypatch.setattr("models.methods.astra.sampled_bce", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(TrainingError, match=r"the loss is nan at step 0 .*rows \["):
        stages.run_train(job)


def test_points_without_labels_are_left_out_of_training(tmp_path, monkeypatch):
    job = job_in(tmp_path, "method.label_rows=false", "train.epochs=2")
    labels = job.dataset.train.labels
    empty = int(job.parts.train_rows[0])
    labels.data[labels.indptr[empty] : labels.indptr[empty + 1]] = 0.0
    labels.eliminate_zeros()
    seen = set()
    step = loop._Loop._step

    def watching_step(self, picked):
        seen.update(picked.tolist())
        step(self, picked)

    monkeypatch.setattr(loop._Loop, "_step", watching_step)
    stages.run_train(job)
    assert seen == set(range(1, len(job.parts.train_rows)))


def test_a_stage_without_its_input_says_which_stage_to_run(tmp_path):
    job = job_in(tmp_path)
    with pytest.raises(RunError, match="run `python -m models train` first"):
        stages.run_export(job)
