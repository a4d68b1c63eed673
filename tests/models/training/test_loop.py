"""The loop: repeatable, resumable, stops early, and says which step broke."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event

from models import stages
from models.config import TrainConfig
from models.encoders import frozen
from models.encoders.build import transformer_of
from models.errors import RunError, TrainingError
from models.methods.astra import Astra
from models.runs import (
    CHECKPOINT_FILE,
    FAILED_BATCH_FILE,
    METRICS_FILE,
    MODEL_FILE,
    TENSORBOARD_FOLDER,
)
from models.trained import load_model
from models.training import loop
from models.training.distributed import World
from models.training.optimizers import scheduled_share
from tests.support.killing import Killed
from tests.support.tiny_job import WIDTH, write_tiny_job

FROZEN = ["encoder.kind=bag+transformer", "encoder.frozen=true"]
END_TO_END = ["encoder.kind=bag+transformer", "encoder.frozen=false", "train.transformer_lr=0.01"]
OFTEN = "train.checkpoint_seconds=1e-9"


def history(job):
    lines = (job.run.folder / METRICS_FILE).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(record["epoch"], record["loss"], record["validation_p_at_1"]) for record in records]


def losses(job):
    return [loss for _, loss, _ in history(job)]


def job_in(folder, *overrides):
    folder.mkdir(exist_ok=True)
    return stages.TrainingJob.open(write_tiny_job(folder, *overrides), folder / "var")


def weights_of(job):
    return load_file(job.run.folder / MODEL_FILE)


def same_weights(first, second):
    one, other = weights_of(first), weights_of(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def kill_in(monkeypatch, method, when):
    """Let the loop die on entering `method` when `when(loop)` holds."""
    whole = getattr(loop.Loop, method)

    def dying(self, *arguments):
        if when(self):
            raise Killed
        return whole(self, *arguments)

    monkeypatch.setattr(loop.Loop, method, dying)


def test_same_seed_gives_the_same_losses_and_weights(tmp_path):
    first, second = job_in(tmp_path / "a"), job_in(tmp_path / "b")
    stages.run_train(first)
    stages.run_train(second)
    assert history(first) == history(second)
    assert same_weights(first, second)


def test_another_seed_gives_other_losses(tmp_path):
    first, second = job_in(tmp_path / "a"), job_in(tmp_path / "b", "seed=6")
    stages.run_train(first)
    stages.run_train(second)
    assert history(first)[0] != history(second)[0]


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["method.kind=full-bce"],
        ["method.kind=mips-s"],
        ["method.hard_only=true", "method.hard_pool=30", "method.hard_negatives=30"],
        ["method.weights=self-normalised"],
        ["method.weights=capped", "train.schedule=cosine"],
    ],
    ids=lambda changes: ",".join(changes) or "defaults",
)
def test_training_learns(tmp_path, changes):
    job = job_in(tmp_path, *changes)
    stages.run_train(job)
    assert job.run.measured()["training"]["validation_p_at_1"] > 60
    assert not (job.run.folder / CHECKPOINT_FILE).exists()


KILLED = {
    "bag, uniform": ([], 3),
    "bag, hard": ([], 20),
    "frozen": (FROZEN, 20),
    "end to end": (END_TO_END, 20),
    "full BCE": (["method.kind=full-bce", "train.accumulate=2"], 20),
}


@pytest.mark.parametrize("case", list(KILLED))
def test_a_killed_run_resumes_to_the_very_same_end(tmp_path, bert, monkeypatch, case):
    changes, killed_at = KILLED[case]
    changes = [*changes, OFTEN, "train.epochs=3"]
    if "encoder" in "".join(changes):
        changes.append(f"encoder.source={bert}")
    whole, cut = job_in(tmp_path / "whole", *changes), job_in(tmp_path / "cut", *changes)
    stages.run_train(whole)
    kill_in(monkeypatch, "_step", lambda self: self.progress.step == killed_at)
    with pytest.raises(Killed):
        stages.run_train(cut)
    monkeypatch.undo()
    stages.run_train(cut)
    assert history(cut) == history(whole)
    assert same_weights(cut, whole)


@pytest.mark.parametrize("place", ["before", "after"])
def test_killed_between_an_epochs_line_and_its_checkpoint_the_line_is_not_doubled(
    tmp_path, monkeypatch, place
):
    whole, cut = job_in(tmp_path / "whole"), job_in(tmp_path / "cut")
    stages.run_train(whole)
    method = {"before": "_announce", "after": "_save"}[place]
    kill_in(monkeypatch, method, lambda self: self.progress.step >= 30)
    with pytest.raises(Killed):
        stages.run_train(cut)
    monkeypatch.undo()
    stages.run_train(cut)
    assert history(cut) == history(whole)
    assert [epoch for epoch, _, _ in history(cut)] == [1, 2, 3, 4]


def test_killed_before_the_result_is_recorded_nothing_is_trained_again(tmp_path, monkeypatch):
    job = job_in(tmp_path)

    def dying(self, **_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("models.runs.Run.record", dying)
        with pytest.raises(Killed):
            stages.run_train(job)
    monkeypatch.setattr(loop.Loop, "_step", lambda *_: pytest.fail("trained again"))
    stages.run_train(job)
    assert job.run.measured()["training"]["epochs"] == 4
    assert not (job.run.folder / CHECKPOINT_FILE).exists()


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    job = job_in(tmp_path)
    stages.run_train(job)
    monkeypatch.setattr(loop.Loop, "epoch", lambda self: pytest.fail("trained again"))
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


def test_two_half_batches_make_the_same_step_as_a_whole_one(tmp_path):
    """Full BCE draws nothing, and dropout draws alike for halves and the whole."""
    found = []
    for accumulate in (1, 2):
        job = job_in(
            tmp_path / str(accumulate), "method.kind=full-bce", f"train.accumulate={accumulate}"
        )
        stages.run_train(job)
        found.append(job)
    assert losses(found[0]) == pytest.approx(losses(found[1]), rel=1e-5)
    one, other = (weights_of(job)["labels.weight"] for job in found)
    assert torch.allclose(one, other, atol=1e-4)


def test_more_parts_than_rows_in_a_batch_train_as_many_as_there_are(tmp_path):
    """900 rows in batches of 64 leave a last one of 4."""
    job = job_in(tmp_path, "train.accumulate=7", "train.epochs=2")
    stages.run_train(job)
    assert len(history(job)) == 2


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.5, 0.9, 0.8, 0.5, 0.1]),
        ("cosine", [0.5, 0.97553, 0.90451, 0.5, 0.02447]),
    ],
)
def test_the_rate_warms_up_and_falls(schedule, expected):
    """Two steps of warm-up, ten in all; cosine: (1 + cos(pi t / 10)) / 2."""
    config = TrainConfig(schedule=schedule, warmup_steps=2)
    found = [scheduled_share(config, step, 10) for step in (0, 1, 2, 5, 9)]
    assert found == pytest.approx(expected, abs=1e-5)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert scheduled_share(TrainConfig(warmup_steps=0), 0, 10) == 1.0


def test_the_schedule_reaches_the_optimisers(tmp_path, monkeypatch):
    rates = []
    step = loop.Optimizers.step

    def watching(self, rate, scaler):
        step(self, rate, scaler)
        rates.append({name: made.param_groups[0]["lr"] for name, made in self.named.items()})

    monkeypatch.setattr(loop.Optimizers, "step", watching)
    stages.run_train(job_in(tmp_path, "train.schedule=cosine", "train.epochs=2"))
    assert len(rates) == 2 * 15
    assert rates[15] == {
        "tables": pytest.approx(0.02 * 0.5 * (1 + math.cos(math.pi / 2))),
        "labels": pytest.approx(0.05 * 0.5 * (1 + math.cos(math.pi / 2))),
    }


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_what_full_precision_learns(tmp_path, bert, precision):
    changes = [*END_TO_END, f"encoder.source={bert}", "train.epochs=2"]
    full = job_in(tmp_path / "full", *changes)
    half = job_in(tmp_path / "half", *changes, f"train.precision={precision}")
    stages.run_train(full)
    stages.run_train(half)
    assert losses(half) != losses(full)
    assert losses(half)[-1] == pytest.approx(losses(full)[-1], rel=0.1)


def test_fp16_is_refused_for_several_processes(tmp_path):
    model = SimpleNamespace(world=World(0, 2))
    run = job_in(tmp_path, "train.precision=fp16").run
    with pytest.raises(TrainingError, match="fp16, which scales its loss for each process apart"):
        loop.train(model, None, None, run, None)


def test_asking_for_a_gpu_that_is_not_there_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match=r"train\.device is cuda, but torch finds no CUDA"):
        stages.run_train(job_in(tmp_path, "train.device=cuda"))


def test_a_frozen_backbone_runs_once_and_its_cache_gives_the_same_queries(
    tmp_path, bert, monkeypatch
):
    changes = [*FROZEN, f"encoder.source={bert}", "train.epochs=2"]
    job = job_in(tmp_path, *changes)
    stages.run_train(job)
    pooled = sorted(job.cache.glob("*.npy"))
    assert len(pooled) == 2  # points and labels
    model = load_model(job.run)
    data = job.corpus
    with torch.no_grad():
        for texts in (data.train, data.validation, data.labels):
            with_cache = replace(
                texts, pooled=frozen.cached_pooled(transformer_of(model.encoder), texts, job.cache)
            )
            picked = np.arange(50)
            fresh = loop.embed(model.encoder, texts.take(picked))
            cached = loop.embed(model.encoder, with_cache.take(picked))
            assert np.abs(fresh - cached).max() < 2e-3
    monkeypatch.setattr(frozen, "pool_all", lambda *_: pytest.fail("the backbone ran again"))
    again = job_in(tmp_path, *changes, "seed=6")
    stages.run_train(again)
    assert losses(again) != losses(job)


def test_a_frozen_backbone_is_the_sources_to_the_last_bit_and_the_rest_has_moved(tmp_path, bert):
    job = job_in(tmp_path, *FROZEN, f"encoder.source={bert}", "train.epochs=2")
    stages.run_train(job)
    trained, source = weights_of(job), load_file(bert / "model.safetensors")
    prefix = "encoder.transformer.backbone."
    assert all(torch.equal(trained[prefix + name], source[name]) for name in source)
    assert not torch.equal(trained["encoder.transformer.projection.weight"], torch.eye(WIDTH))


def test_an_end_to_end_backbone_moves(tmp_path, bert):
    job = job_in(tmp_path, *END_TO_END, f"encoder.source={bert}", "train.epochs=2")
    stages.run_train(job)
    trained, source = weights_of(job), load_file(bert / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    assert not torch.equal(trained[f"encoder.transformer.backbone.{name}"], source[name])
    assert not list(job.cache.glob("*"))


@pytest.mark.parametrize("changes", [[], FROZEN, ["encoder.kind=transformer"]])
def test_a_trained_model_opens_as_it_was_left(tmp_path, bert, changes):
    source = [f"encoder.source={bert}"] if changes else []
    job = job_in(tmp_path, *changes, *source, "train.epochs=2")
    stages.run_train(job)
    ranked = loop.rank(load_model(job.run), job.validation, 1)
    best = max(p_at_1 for _, _, p_at_1 in history(job))
    # The cache is in half precision, the opened model is not: a near tie may fall otherwise.
    found = 100 * loop.precision_at_k(ranked, job.validation.truth, 1)
    assert found == pytest.approx(best, abs=2.0)


def events_of(folder):
    """(tag, step, value) of every point of every event file, and the step where each starts."""
    points, starts = [], []
    for path in sorted(folder.iterdir(), key=lambda path: int(path.suffix[1:])):
        data = path.read_bytes()
        at = 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4
            if event.HasField("session_log"):
                starts.append(event.step)
            points += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return points, starts


def test_curves_are_written_for_every_step_and_epoch(tmp_path):
    job = job_in(tmp_path, "train.epochs=2")
    stages.run_train(job)
    points, starts = events_of(job.run.folder / TENSORBOARD_FOLDER)
    assert starts == [0]
    steps = [step for tag, step, _ in points if tag == "train/loss"]
    assert steps == list(range(2 * 15))
    assert [step for tag, step, _ in points if tag == "train/rate"] == steps
    curve = [(step, value) for tag, step, value in points if tag == "epoch/validation_p_at_1"]
    assert curve == [(epoch, pytest.approx(p_at_1)) for epoch, _, p_at_1 in history(job)]
    of_epoch = [value for tag, step, value in points if tag == "train/loss"][:15]
    assert np.mean(of_epoch) == pytest.approx(losses(job)[0], rel=1e-5)


def test_a_resumed_run_voids_the_steps_that_it_does_again(tmp_path, monkeypatch):
    job = job_in(tmp_path)
    kill_in(monkeypatch, "_step", lambda self: self.progress.step == 20)
    with pytest.raises(Killed):
        stages.run_train(job)
    monkeypatch.undo()
    stages.run_train(job)
    _, starts = events_of(job.run.folder / TENSORBOARD_FOLDER)
    assert starts == [0, 15]


def poison(monkeypatch, at):
    """Make the loss of one step no number."""
    whole = Astra.train_step

    def poisoned(self, rows, picked, rng):
        loss = whole(self, rows, picked, rng)
        poisoned.steps += 1
        return loss * float("nan") if poisoned.steps > at else loss

    poisoned.steps = 0
    monkeypatch.setattr(Astra, "train_step", poisoned)


def test_a_loss_that_is_not_a_number_names_step_rows_and_checkpoint(tmp_path, monkeypatch):
    job = job_in(tmp_path, "train.epochs=2")
    whole = job_in(tmp_path / "whole", "train.epochs=2")
    stages.run_train(whole)
    poison(monkeypatch, at=17)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 17 \(epoch 2\)") as raised:
        stages.run_train(job)
    report = json.loads((job.run.folder / FAILED_BATCH_FILE).read_text())
    assert (report["step"], report["epoch"], len(report["rows"])) == (17, 2, 64)
    known = {job.dataset.train.uids[row] for row in job.parts.train_rows}
    known |= {f"label row {row}" for row in range(len(job.dataset.labels))}
    assert set(report["rows"]) <= known
    sentence = str(raised.value)
    assert f"rows {', '.join(report['rows'][:5])} and 59 more" in sentence
    assert f"{job.run.folder / CHECKPOINT_FILE} holds the last good checkpoint" in sentence
    monkeypatch.undo()
    stages.run_train(job)
    assert history(job) == history(whole)


def test_a_loss_that_is_no_number_at_once_has_no_checkpoint_to_name(tmp_path, monkeypatch):
    poison(monkeypatch, at=0)
    with pytest.raises(TrainingError, match="there was no checkpoint yet"):
        stages.run_train(job_in(tmp_path))


def test_weights_that_are_no_numbers_are_neither_kept_nor_called_trained(tmp_path, monkeypatch):
    """The loss of an epoch's last step is fine; what the step makes of the weights is not."""
    job = job_in(tmp_path, "train.epochs=2")
    step = loop.Optimizers.step

    def breaking(self, rate, scaler):
        step(self, rate, scaler)
        breaking.steps += 1
        if breaking.steps == 30:
            next(iter(self.encoder_parameters)).data[3, 0] = float("inf")

    breaking.steps = 0
    monkeypatch.setattr(loop.Optimizers, "step", breaking)
    with pytest.raises(TrainingError, match="some weights are no numbers after epoch 2"):
        stages.run_train(job)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights_of(job).values())
    assert "training" not in job.run.measured()
    monkeypatch.undo()
    stages.run_train(job)
    assert [epoch for epoch, _, _ in history(job)] == [1, 2]


def test_points_without_labels_are_left_out_of_training(tmp_path, monkeypatch):
    job = job_in(tmp_path, "method.label_rows=false", "train.epochs=2")
    labels = job.dataset.train.labels
    empty = int(job.parts.train_rows[0])
    labels.data[labels.indptr[empty] : labels.indptr[empty + 1]] = 0.0
    labels.eliminate_zeros()
    seen = set()
    step = loop.Loop._step

    def watching_step(self, picked):
        seen.update(picked.tolist())
        step(self, picked)

    monkeypatch.setattr(loop.Loop, "_step", watching_step)
    stages.run_train(job)
    assert seen == set(range(1, len(job.parts.train_rows)))


def test_a_stage_without_its_input_says_which_stage_to_run(tmp_path):
    job = job_in(tmp_path)
    with pytest.raises(RunError, match="run `python -m models train` first"):
        stages.run_export(job)
