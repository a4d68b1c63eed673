"""ELIAS: its phases, what a step does, resuming, and that what is served is what was trained."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models import stages
from models.encoders.build import embed
from models.errors import ConfigError, TrainingError
from models.index.kind import Material
from models.index.registry import build_label_index
from models.quality.metrics import recall_at_k
from models.rng import Rng
from models.runs import METRICS_FILE, MODEL_FILE, Run
from models.trained import fresh_model, load_model
from models.training import loop
from models.training.distributed import World
from models.training.losses import path_bce
from models.warm_start import first_encoder
from service.core.engine import Engine
from service.core.index.opening import open_label_index
from service.core.types import Query
from tests.support.killing import Killed, killed_at
from tests.support.tiny_job import write_tiny_job

ELIAS = (
    "method.kind=elias",
    "index.kind=learned-graph",
    "elias.clusters=8",
    "elias.kappa=20",
    "elias.beta=10.0",
    "elias.beam=3",
    "elias.shortlist=30",
    "elias.fixed_epochs=2",
    "elias.cluster_lr=0.05",
    "train.epochs=3",
)


def job_in(folder, *overrides):
    folder.mkdir(exist_ok=True)
    return stages.TrainingJob.open(write_tiny_job(folder, *ELIAS, *overrides), folder / "var")


def history(job):
    lines = (job.run.folder / METRICS_FILE).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(line["stage"], line["epoch"], line["loss"]) for line in records]


def untrained(job):
    """The model and its rows before training, ready for its first phase."""
    encoder = first_encoder(job.run, job.dataset, job.parts.train_rows, World())
    points = stages._points(job, encoder, World())
    return fresh_model(encoder, job.corpus.labels, job.run.config, points, World())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    job = job_in(tmp_path_factory.mktemp("elias"))
    stages.run_train(job)
    return job


def queries_of(job, model):
    return embed(model.encoder, job.corpus.validation)


def test_it_trains_phase_after_phase_and_learns(trained):
    phases = [(stage, epoch) for stage, epoch, _ in history(trained)]
    assert phases == [
        ("initial", 1),
        ("fixed", 2),
        ("fixed", 3),
        ("learned", 4),
        ("learned", 5),
        ("learned", 6),
    ]
    training = trained.run.measured()["training"]
    assert training["validation_p_at_1"] > 60
    assert training["best_epoch"] > 3  # one of the last phase


def test_without_learning_the_fixed_clusters_are_the_end(tmp_path):
    job = job_in(tmp_path, "elias.learned=false", "elias.initial_epochs=0")
    stages.run_train(job)
    assert [stage for stage, _, _ in history(job)] == ["fixed"] * 3
    model = load_model(job.run)
    members = model.edges[model.edges < model.n_labels]
    assert sorted(members.tolist()) == list(range(60))
    assert set(model.servable().graph.weights.ravel().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("killed_step", [3, 20, 45, 60])
def test_a_killed_run_resumes_to_the_very_same_end(tmp_path, trained, killed_step):
    """In each of the phases, and just before an epoch ends."""
    cut = job_in(tmp_path, "train.checkpoint_seconds=1e-9", "name=cut")
    with killed_at(killed_step):
        stages.run_train(cut)
    stages.run_train(cut)
    assert history(cut) == history(trained)
    ours, theirs = (load_file(job.run.folder / MODEL_FILE) for job in (cut, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_killed_between_two_phases_it_goes_on_alike(tmp_path, trained, monkeypatch):
    cut = job_in(tmp_path, "name=cut")

    def dying(self, number):
        raise Killed

    begin = loop.Loop.begin_phase
    monkeypatch.setattr(
        loop.Loop,
        "begin_phase",
        lambda self, number: dying(self, number) if number == 2 else begin(self, number),
    )
    with pytest.raises(Killed):
        stages.run_train(cut)
    monkeypatch.undo()
    stages.run_train(cut)
    assert history(cut) == history(trained)


def test_a_trained_model_opens_as_it_was_left_and_ranks_as_it_was_measured(trained):
    model = load_model(trained.run)
    found = model.best(queries_of(trained, model), 5)
    lines = (trained.run.folder / METRICS_FILE).read_text().splitlines()
    best = max(json.loads(line)["validation_p_at_5"] for line in lines[3:])
    hits = np.take_along_axis(trained.validation.truth.toarray() > 0, found.labels, axis=1)
    assert 100 * hits.mean() == pytest.approx(best, abs=3)
    assert ((found.probabilities >= 0) & (found.probabilities <= 1)).all()
    assert (np.diff(found.probabilities, axis=1) <= 0).all()


def search(job, folder, beam, size, k):
    """The service's answers and the training code's, to the same queries."""
    model = load_model(job.run)
    parts = model.servable()
    bias = job.run.config.method.logit_bias
    nothing = job.validation.truth[:0]
    material = Material(parts.label_vectors, bias, queries_of(job, model)[:0], nothing, parts.graph)
    info = build_label_index(material, job.run.config.index, folder)
    params = {"beam": beam, "shortlist": size}
    efforts = {"asked": params, "exact": {}}
    index = open_label_index(folder, info, model.encoder.dim, efforts)
    model.elias = model.elias.model_copy(update=params)
    queries = queries_of(job, model)
    return index.search(queries, k, "asked"), model.best(queries, k), index, queries


@pytest.mark.parametrize(("beam", "size"), [(1, 60), (3, 60), (8, 60), (3, 7)])
def test_the_service_gives_the_training_codes_answers(trained, tmp_path, beam, size):
    hits, found, _, _ = search(trained, tmp_path, beam, size, 5)
    assert hits.scores == pytest.approx(found.probabilities, abs=1e-4)
    apart = np.abs(np.diff(found.probabilities, axis=1)).min(axis=1) > 1e-4
    assert apart.sum() > 10
    assert np.array_equal(hits.rows[apart], found.labels[apart])


def test_where_the_beam_reaches_too_few_both_answer_from_all_clusters(trained, tmp_path):
    hits, found, index, queries = search(trained, tmp_path, 1, 60, 60)
    assert hits.scores == pytest.approx(found.probabilities, abs=1e-4)
    assert np.array_equal(np.sort(hits.rows, axis=1), np.tile(np.arange(60), (len(queries), 1)))
    exact = index.search(queries, 60, "exact")
    assert np.array_equal(exact.rows, hits.rows)


def test_wide_edges_that_are_members_are_the_fixed_clusters(tmp_path):
    """kappa >= a cluster's size, beta large, the pattern one-hot: stage 2 is then stage 1."""
    job = job_in(tmp_path, "elias.learned=false", "elias.initial_epochs=0", "train.epochs=2")
    stages.run_train(job)
    fixed, learned = load_model(job.run), load_model(job.run)
    learned.elias = learned.elias.model_copy(update={"beta": 1e6})
    with torch.no_grad():
        learned.learned.fill_(True)
        learned.theta.zero_()
    queries = queries_of(job, fixed)
    ours, theirs = learned.best(queries, 10), fixed.best(queries, 10)
    assert np.array_equal(ours.labels, theirs.labels)
    assert np.array_equal(ours.probabilities, theirs.probabilities)


def test_the_clusters_of_a_rows_labels_are_visited(tmp_path):
    """Teacher forcing: with the beam's and five more all parents fit in."""
    model, rows = untrained(job_in(tmp_path, "elias.clusters=20", "elias.beam=1"))
    rng = Rng.from_seed(1)
    model.begin(0, rows, rng)
    assert (model.parents >= 0).all()
    picked = np.arange(50)
    chosen = model._training_clusters(torch.zeros(50, 20), rows, picked, rng)
    assert chosen.shape == (50, 6)
    for row in picked:
        labels = rows.labels.indices[rows.labels.indptr[row] : rows.labels.indptr[row + 1]]
        parents = set(model.parents[labels].tolist())
        assert len(set(chosen[row].tolist())) == 6
        if len(parents) <= 5:
            assert parents <= set(chosen[row].tolist())


def test_a_parent_is_the_cluster_with_the_heaviest_edge(trained):
    model = load_model(trained.run)
    model.refresh(None)
    weights = model.edge_weights().detach()
    for label in range(60):
        owners, places = torch.where(model.edges == label)
        parent = model.parents[label].item()
        assert (parent >= 0) == (len(owners) > 0)
        if parent >= 0:
            heaviest = weights[owners, places].max()
            assert heaviest in weights[parent][model.edges[parent] == label]


def test_of_edges_cut_at_one_the_heavier_makes_the_parent(trained):
    """Both edges count 1 in a search; the parent is the cluster that has more of the label."""
    model = load_model(trained.run)
    edges, theta = model.edges.clone(), torch.full_like(model.theta, -9.0)
    edges[:] = model.n_labels
    edges[:, :2] = torch.arange(2)  # labels 0 and 1 in every cluster
    theta[:, 0], theta[:, 1] = 1.0, 1.0
    theta[1, 0], theta[1, 1] = 3.0, 1.0  # and most of label 0 in cluster 1
    with torch.no_grad():
        model.edges.copy_(edges)
        model.theta.copy_(theta)
    model.elias = model.elias.model_copy(update={"beta": 100.0})
    assert (model.edge_weights()[:, :2] == 1).all()
    model.refresh(None)
    assert model.parents[0] == 1
    assert model.parents[1] != 1
    assert (model.parents[2:] == -1).all()


@pytest.mark.parametrize("dense", [True, False])
def test_gathered_logits_are_the_dense_ones(tmp_path, monkeypatch, dense):
    if not dense:
        monkeypatch.setattr("models.methods.elias._GATHER_BEYOND", 0)
    job = job_in(tmp_path, "train.epochs=1", "elias.fixed_epochs=1")
    stages.run_train(job)
    model = load_model(job.run)
    assert model.dense == dense
    assert job.run.measured()["training"]["validation_p_at_1"] > 40
    queries, labels = torch.randn(7, 24), torch.randint(60, (7, 5))
    expected = (queries @ model.labels.weight.T).gather(1, labels) * 10.0 - 4.0
    assert torch.allclose(model._label_logits(queries, labels), expected, atol=1e-4)


def test_the_loss_is_the_two_crossentropies():
    logits, paths = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[0.9, 0.2, 0.4]])
    targets, counted = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[True, True, False]])
    first, second = (logits.sigmoid() * paths)[0, :2].tolist()
    expected = -np.log(first) - np.log(1 - second) - 0.3 * np.log(0.9)
    found = path_bce(logits, paths, targets, counted, 0.3)
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("logit", [8.0, 12.0, 16.0, 20.0, 90.0])
@pytest.mark.parametrize("path", [1.0, 1.0 - 1e-6])
def test_a_label_that_is_surely_wrong_is_pulled_down(logit, path):
    """The gradient is sigmoid(s) - sigmoid(s + log(1 - path)), and 1 where the path is 1."""
    logits = torch.tensor([[logit]], requires_grad=True)
    off, on = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    path_bce(logits, torch.tensor([[path]]), off, on, 1.0).backward()
    rest = 1.0 - np.float64(np.float32(path))
    chance = 1 / (1 + np.exp(-logit))
    expected = chance * (1 - chance) * (1 - rest) / (1 - chance * (1 - rest)) if rest else chance
    assert logits.grad.item() == pytest.approx(expected, rel=1e-3)


def test_nothing_is_no_number_where_a_path_is_gone():
    """A cluster score can underflow; a saturated probability must not give an infinite loss."""
    logits = torch.tensor([[90.0, 0.0]], requires_grad=True)
    paths = torch.tensor([[1.0, 0.0]], requires_grad=True)
    targets, counted = torch.tensor([[0.0, 1.0]]), torch.tensor([[True, False]])
    loss = path_bce(logits, paths, targets, counted, 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(paths.grad).all()


def test_several_processes_are_refused(tmp_path):
    job = job_in(tmp_path)
    with pytest.raises(TrainingError, match="trains in one process, and torchrun started 2"):
        fresh_model(None, None, job.run.config, None, World(0, 2))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("method.softmax_share=0.5", "elias has no softmax"),
        ("method.hard_only=true", "method.hard_only"),
        ("index.kind=hnsw", "elias is served by learned-graph"),
        ("method.label_device=host", "elias scores all"),
        ("method.kind=astra", "elias.* are set, but method.kind is astra"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, override, sentence):
    with pytest.raises(ConfigError, match=sentence):
        job_in(tmp_path, override)


ENCODERS = {
    "transformer": ["encoder.kind=transformer", "encoder.frozen=false"],
    "frozen": ["encoder.kind=bag+transformer", "encoder.frozen=true"],
    "end to end": ["encoder.kind=bag+transformer", "encoder.frozen=false"],
}


@pytest.mark.parametrize("case", list(ENCODERS))
def test_every_encoder_trains(tmp_path, bert, case):
    job = job_in(tmp_path, *ENCODERS[case], f"encoder.source={bert}", "train.epochs=2")
    stages.run_train(job)
    losses = [loss for _, _, loss in history(job)]
    assert losses[-1] < losses[0]
    model = load_model(job.run)
    assert recall_at_k(model.best(queries_of(job, model), 10).labels, job.validation.truth, 10) > 0


def test_labels_that_come_along_train_as_soft_targets(tmp_path):
    job = job_in(tmp_path, "method.label_cooccurrence=0.5", "train.epochs=2")
    stages.run_train(job)
    model = load_model(job.run)
    assert (
        recall_at_k(model.best(queries_of(job, model), 10).labels, job.validation.truth, 10) > 0.5
    )


def test_from_training_to_an_answer(trained):
    for stage in (stages.run_export, stages.run_index):
        stage(trained)
    engine = Engine.open(stages.run_release(trained), device="cpu")
    assert engine.manifest.index.kind == "learned-graph"
    assert engine.manifest.index.metric == "probability"
    assert engine.manifest.quality.metrics["p1"] > 60
    points = {point.name: point for point in engine.manifest.operating_points}
    assert points["exact"].params == {}
    assert points["exact"].recall_at_10 == 1.0
    text = trained.dataset.train.titles[0]
    [answer] = engine.predict([Query(text, 5, "balanced")]).predictions
    assert len(answer.rows) == 5
    assert ((answer.scores >= 0) & (answer.scores <= 1)).all()


def test_a_memory_stands_beside_probabilities(trained, tmp_path):
    old = trained.run
    folder = shutil.copytree(old.folder, tmp_path / "run")
    (folder / "calibration.json").unlink(missing_ok=True)
    memory = old.config.memory.model_copy(update={"kind": "queries", "weights": [0.3]})
    config = old.config.model_copy(update={"memory": memory})
    job = replace(trained, run=Run(folder, config, old.data_sha256), bundles=tmp_path / "bundles")
    for stage in (stages.run_export, stages.run_index):
        stage(job)
    engine = Engine.open(stages.run_release(job), device="cpu")
    info = engine.manifest.memory
    assert (info.logit_bias, info.weight) == (None, 0.3)
    points = {point.name: point for point in engine.manifest.operating_points}
    assert points["exact"].recall_at_10 > 0.98  # the memory's vectors are in half precision
    assert set(points["balanced"].params) == {"beam", "shortlist", "memory_ef_search"}
    [answer] = engine.predict([Query(trained.dataset.train.titles[0], 5, "exact")]).predictions
    assert ((answer.scores >= 0) & (answer.scores <= 1)).all()
