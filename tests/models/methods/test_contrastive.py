"""Contrastive pre-training: which batches it makes, what it learns, and that it can be killed."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.sparse import csr_array

from models import stages
from models.config import PretrainConfig
from models.data.tokens import TokenizedTexts
from models.encoders.bag import BagEncoder
from models.errors import RunError, TrainingError
from models.methods import astra, contrastive
from models.methods.contrastive import Contrastive
from models.rng import Rng
from models.runs import (
    FAILED_BATCH_FILE,
    METRICS_FILE,
    MODEL_FILE,
    PRETRAIN_CHECKPOINT_FILE,
    PRETRAINED_FILE,
)
from models.training.distributed import World
from models.training.training_rows import TrainingRows
from tests.support.killing import Killed, killed_at
from tests.support.tiny_job import write_tiny_job

SWITCHED_ON = (
    "pretrain.epochs=4",
    "pretrain.batch_size=64",
    "pretrain.cluster_size=4",
    "pretrain.cluster_double_epochs=2",
    "pretrain.cluster_refresh_epochs=3",
    "pretrain.encoder_lr=0.02",
    "pretrain.warmup_steps=5",
    "method.hard_negatives=0",
    "train.epochs=1",
)
EACH_STEP = "train.checkpoint_seconds=1e-9"


def job_in(folder, *overrides):
    folder.mkdir(exist_ok=True)
    return stages.TrainingJob.open(write_tiny_job(folder, *overrides), folder / "var")


def records(job, stage=None):
    """Lines of metrics.jsonl without their clock readings."""
    lines = map(json.loads, (job.run.folder / METRICS_FILE).read_text().splitlines())
    clocks = ("seconds", "peak_memory_mb")
    return [
        {name: value for name, value in line.items() if name not in clocks}
        for line in lines
        if line.get("stage") == stage
    ]


def texts_of(tokens):
    """One text a token, between two special ones."""
    ids = np.stack([np.full(len(tokens), 1), tokens, np.full(len(tokens), 2)], axis=1)
    return TokenizedTexts(ids.astype(np.int32).ravel(), np.arange(0, ids.size + 1, 3), 0)


@pytest.fixture
def model():
    """24 texts of 4 topics over 8 labels; row 5 has no label, every third row ignores label 0."""
    generator = np.random.default_rng(2)
    topic = generator.integers(4, size=24)
    labels = np.zeros((24, 8), np.float32)
    labels[np.arange(24), topic] = 1
    labels[np.arange(24), topic + 4] = generator.integers(2, size=24)
    labels[5] = 0
    ignored = np.zeros_like(labels)
    ignored[::3, 0] = labels[::3, 0] == 0
    points = TrainingRows(
        texts_of(topic + 3), csr_array(labels), csr_array(ignored), [f"row {n}" for n in range(24)]
    )
    torch.manual_seed(0)
    encoder = BagEncoder(torch.randn(20, 8), pair_buckets=32)
    config = PretrainConfig(epochs=8, batch_size=8, cluster_size=2, cluster_double_epochs=3)
    return Contrastive(encoder, points, texts_of(np.arange(8) + 8), config)


def with_config(model, **changes):
    config = model.config.model_copy(update=changes)
    return Contrastive(model.encoder, model.points, model.label_texts, config)


def test_cluster_size_doubles_up_to_the_batch(model):
    assert [model.cluster_size(epoch) for epoch in range(10)] == [2, 2, 2, 4, 4, 4, 8, 8, 8, 8]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_row_with_a_label_comes_once_an_epoch(model, size):
    model, rng, order = with_config(model, cluster_size=size), Rng.from_seed(1), np.empty(0)
    for epoch in range(8):
        order = model.regroup(epoch, order, rng)
        assert sorted(order) == [row for row in range(24) if row != 5]


def test_alike_queries_stand_together_in_a_new_order_each_epoch(model):
    """Texts of one topic are the same text here, so a cluster of two holds one topic if it can."""
    model, rng = (
        with_config(model, cluster_double_epochs=9, cluster_refresh_epochs=9),
        Rng.from_seed(1),
    )
    first = model.regroup(0, np.empty(0, np.int64), rng)
    second = model.regroup(1, first, rng)
    pairs, others = (order[:22].reshape(11, 2).tolist() for order in (first, second))
    assert pairs != others
    assert sorted(pairs) == sorted(others)
    words = model.points.texts.ids[1::3]
    assert sum(words[one] != words[other] for one, other in pairs) <= 3


@pytest.mark.parametrize(
    ("epoch", "regrouped"), [(1, False), (2, True), (3, True), (4, True), (5, False)]
)
def test_clusters_are_made_anew_when_due_or_when_they_grow(model, monkeypatch, epoch, regrouped):
    model = with_config(model, cluster_refresh_epochs=2)
    made = []
    monkeypatch.setattr(
        contrastive,
        "clustered_order",
        lambda vectors, *_: made.append(1) or np.arange(len(vectors)),
    )
    model.regroup(epoch, model.usable, Rng.from_seed(1))
    assert bool(made) is regrouped


def test_a_positive_is_drawn_among_the_labels_of_its_row(model):
    rng, picked = Rng.from_seed(1), model.usable
    drawn = np.stack([model.draw_positives(picked, rng) for _ in range(60)])
    truth = model.points.labels.toarray()
    for place, row in enumerate(picked):
        assert set(drawn[:, place]) == set(np.flatnonzero(truth[row]))


def test_a_label_is_drawn_as_often_as_its_target_is_large(model):
    """A teacher's targets are probabilities: 0.8 and 0.2 here."""
    labels = csr_array(np.array([[0.2, 0.8], [1, 0]], np.float32))
    points = TrainingRows(texts_of(np.arange(2) + 3), labels, csr_array((2, 2)), ["a", "b"])
    model = Contrastive(model.encoder, points, texts_of(np.arange(2) + 8), model.config)
    rng = Rng.from_seed(1)
    drawn = np.concatenate([model.draw_positives(np.array([0]), rng) for _ in range(2000)])
    assert abs(drawn.mean() - 0.8) < 4 * np.sqrt(0.8 * 0.2 / 2000)


@pytest.mark.parametrize("loss", ["contrastive_hinge", "info_nce"])
def test_no_other_label_of_a_query_is_ever_its_negative(model, monkeypatch, loss):
    model = with_config(model, loss={"info_nce": "infonce"}.get(loss, "hinge"))
    seen = []
    kept = getattr(contrastive, loss)

    def watching(scores, positives, allowed, **options):
        seen.append((positives, allowed))
        return kept(scores, positives, allowed, **options)

    monkeypatch.setattr(contrastive, loss, watching)
    monkeypatch.setattr(model, "draw_positives", lambda picked, _: drawn[: len(picked)])
    drawn = np.array([3, 0, 6, 0, 1, 4, 2, 2])
    picked = np.array([0, 3, 1, 6, 9, 12, 2, 4])
    model.train_step(model.points, picked, Rng.from_seed(1))
    [(positives, allowed)] = seen
    labels = np.unique(drawn)  # drawn twice, compared once
    assert labels[positives].tolist() == drawn.tolist()
    known = model.points.labels.toarray() + model.points.ignored.toarray()
    assert (allowed.numpy() == (known[picked][:, labels] == 0)).all()


def test_it_improves_the_ranking_of_label_texts_and_keeps_the_best_epoch(tmp_path):
    job = job_in(tmp_path, *SWITCHED_ON)
    stages.run_train(job)
    lines = records(job, "pretrain")
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3, 4]
    quality = [line["validation_p_at_1"] for line in lines]
    assert max(quality) > quality[0] + 5
    about = job.run.measured()["pretraining"]
    assert about["validation_p_at_1"] == max(quality)
    assert about["best_epoch"] == quality.index(max(quality))
    assert not (job.run.folder / PRETRAIN_CHECKPOINT_FILE).exists()


def test_the_method_starts_from_the_pretrained_encoder_and_its_label_embeddings(
    tmp_path, monkeypatch
):
    job = job_in(tmp_path, *SWITCHED_ON)
    built = []
    build = astra.build

    def watching(encoder, label_texts, *rest):
        before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
        model, rows = build(encoder, label_texts, *rest)
        vectors = torch.from_numpy(contrastive.embed(encoder, label_texts))
        built.append((before, model.labels.weight.detach().clone(), vectors))
        return model, rows

    monkeypatch.setattr(astra, "build", watching)
    stages.run_train(job)
    [(weights, label_vectors, embeddings)] = built
    kept = load_file(job.run.folder / PRETRAINED_FILE)
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights.items())
    assert torch.allclose(label_vectors, embeddings, atol=1e-6)


@pytest.mark.parametrize("frozen", ["true", "false"])
@pytest.mark.parametrize("kind", ["transformer", "bag+transformer"])
def test_every_encoder_learns_and_a_frozen_backbone_stays(
    tmp_path, monkeypatch, bert, kind, frozen
):
    job = job_in(
        tmp_path,
        *SWITCHED_ON,
        "pretrain.transformer_lr=0.01",
        "pretrain.projection_lr=0.01",
        f"encoder.kind={kind}",
        f"encoder.frozen={frozen}",
        f"encoder.source={bert}",
    )
    fresh = {}
    pretrain = contrastive.pretrain

    def watching(encoder, *rest):
        fresh.update({name: tensor.clone() for name, tensor in encoder.state_dict().items()})
        pretrain(encoder, *rest)

    monkeypatch.setattr(contrastive, "pretrain", watching)
    stages.run_train(job)
    quality = [line["validation_p_at_1"] for line in records(job, "pretrain")]
    assert max(quality) > quality[0]
    kept = load_file(job.run.folder / PRETRAINED_FILE)
    moved = {name for name, tensor in kept.items() if not torch.equal(tensor, fresh[name])}
    assert any("projection" in name for name in moved)
    assert any("backbone" in name for name in moved) is (frozen == "false")
    assert any("bag" in name for name in moved) is (kind == "bag+transformer")


@pytest.mark.parametrize("loss", ["hinge", "infonce"])
def test_both_losses_learn(tmp_path, loss):
    job = job_in(tmp_path, *SWITCHED_ON, f"pretrain.loss={loss}")
    stages.run_train(job)
    losses = [line["loss"] for line in records(job, "pretrain")[1:]]
    assert losses[-1] < losses[0]


KILLED = {
    "at its first step": ([EACH_STEP], 0),
    "in mid-epoch": ([EACH_STEP], 5),
    "in a later epoch, saved by epochs": (["train.checkpoint_seconds=3600.0"], 40),
    "frozen": ([EACH_STEP, "encoder.kind=bag+transformer"], 20),
    "end to end": (["encoder.kind=transformer", "encoder.frozen=false"], 20),
}


@pytest.mark.parametrize("case", list(KILLED))
def test_a_killed_run_resumes_to_the_very_same_end(tmp_path, bert, case):
    changes, killed_step = KILLED[case]
    changes = [*SWITCHED_ON, *changes]
    if "encoder.kind" in "".join(changes):
        changes.append(f"encoder.source={bert}")
    whole, cut = job_in(tmp_path / "whole", *changes), job_in(tmp_path / "cut", *changes)
    stages.run_train(whole)
    with killed_at(killed_step, contrastive._Loop):
        stages.run_train(cut)
    stages.run_train(cut)
    assert records(cut, "pretrain") == records(whole, "pretrain")
    assert records(cut) == records(whole)
    for file in (PRETRAINED_FILE, MODEL_FILE):
        ours, theirs = (load_file(job.run.folder / file) for job in (cut, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_killed_in_the_method_it_does_not_pretrain_again(tmp_path, monkeypatch):
    job = job_in(tmp_path, *SWITCHED_ON)
    train = stages.train
    monkeypatch.setattr(stages, "train", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        stages.run_train(job)
    monkeypatch.setattr(stages, "train", train)
    monkeypatch.setattr(contrastive._Loop, "run_to_end", lambda _: pytest.fail("trained again"))
    stages.run_train(job)
    assert "training" in job.run.measured()


def test_without_epochs_nothing_changes(tmp_path):
    plain = job_in(tmp_path / "plain", "train.epochs=2")
    off = job_in(tmp_path / "off", "train.epochs=2", "pretrain.epochs=0", "pretrain.margin=0.5")
    for job in (plain, off):
        stages.run_train(job)
    assert records(plain) == records(off)
    assert not records(off, "pretrain")
    assert not (off.run.folder / PRETRAINED_FILE).exists()


def test_an_encoder_that_only_gets_worse_is_kept_as_it_came(tmp_path, monkeypatch):
    """The loss upside down: patience ends it, and epoch 0 is the best."""
    hinge = contrastive.contrastive_hinge
    monkeypatch.setattr(contrastive, "contrastive_hinge", lambda *s, **o: -hinge(*s, **o))
    job = job_in(tmp_path, *SWITCHED_ON, "pretrain.patience=1")
    stages.run_train(job)
    about = job.run.measured()["pretraining"]
    assert (about["best_epoch"], about["epochs"]) == (0, 1)


def test_of_several_processes_one_trains_and_the_others_load_what_it_left(tmp_path, monkeypatch):
    job = job_in(tmp_path, *SWITCHED_ON)
    built, waited = [], []
    monkeypatch.setattr(astra, "build", lambda encoder, *_: built.append(encoder) or kill())
    monkeypatch.setattr(World, "wait", lambda world: waited.append(world.rank))
    monkeypatch.setattr(World, "leave", lambda _: None)

    def kill():
        raise Killed

    for rank in (0, 1):
        monkeypatch.setattr(World, "join", lambda rank=rank: World(rank, size=2))
        with pytest.raises(Killed):
            stages.run_train(job)
        monkeypatch.setattr(contrastive._Loop, "run_to_end", lambda _: pytest.fail("both trained"))
    one, other = (encoder.state_dict() for encoder in built)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert set(waited) == {0, 1}


def test_a_loss_that_is_not_a_number_names_the_step(tmp_path, monkeypatch):
    job = job_in(tmp_path, *SWITCHED_ON)
    monkeypatch.setattr(contrastive, "contrastive_hinge", lambda *_, **__: torch.tensor(np.nan))
    with pytest.raises(TrainingError, match=r"pre-training loss is nan at step 0 .*encoder_lr"):
        stages.run_train(job)
    report = json.loads((job.run.folder / FAILED_BATCH_FILE).read_text())
    assert (report["step"], report["epoch"], len(report["rows"])) == (0, 1, 64)


def test_a_broken_checkpoint_is_an_error_not_a_fresh_start(tmp_path):
    job = job_in(tmp_path, *SWITCHED_ON)
    (job.run.folder / PRETRAIN_CHECKPOINT_FILE).write_bytes(b"not safetensors")
    with pytest.raises(RunError, match="cannot be resumed from"):
        stages.run_train(job)
