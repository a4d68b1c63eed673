"""ASTRA: what it is built from, what a step does, and that its loss is the loss it stands for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from models.config import MethodConfig
from models.data.tokens import TokenizedTexts
from models.encoders.bag import BagEncoder
from models.methods.astra import build
from models.rng import Rng
from models.training import negatives
from models.training.training_rows import TrainingRows
from tests.support.tiny_job import one_word_texts, tiny_transformer

N_LABELS = 6
EVERY_LABEL = {"uniform_negatives": N_LABELS, "hard_negatives": 0}
KINDS = {
    "astra": {"uniform_negatives": N_LABELS, "hard_negatives": 4},
    "hard-only": {"hard_only": True, "hard_negatives": 4},
    "mips-s": {"kind": "mips-s", "uniform_negatives": N_LABELS, "hard_negatives": 4},
    "full-bce": {"kind": "full-bce", "label_chunk": 4},
}


@pytest.fixture
def points():
    ids = np.array([1, 5, 2, 1, 6, 7, 2, 1, 8, 2], np.int32)
    labels = csr_array(np.array([[1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]], "f"))
    nothing = csr_array((3, N_LABELS), dtype=np.float32)
    return TrainingRows(
        TokenizedTexts(ids, np.array([0, 3, 7, 10]), 0), labels, nothing, list("abc")
    )


@pytest.fixture
def label_texts():
    return one_word_texts(N_LABELS)


def make(points, label_texts, encoder=None, **changes):
    torch.manual_seed(0)
    encoder = encoder or BagEncoder(torch.randn(20, 8), pair_buckets=32)
    config = MethodConfig(**{"dropout": 0.0, "logit_bias": -1.0, "score_scale": 2.0} | changes)
    return build(encoder, label_texts, config, points)


def ignoring(points, row, label):
    ignored = np.zeros((3, N_LABELS), np.float32)
    ignored[row, label] = 1.0
    return replace(points, ignored=csr_array(ignored))


def label_gradient(model, rows, row, seed=1):
    """The gradient (n_labels, dim) of one row's loss, and the labels that a step would touch."""
    model.labels.weight.grad = None
    model.train_step(rows, np.array([row]), Rng.from_seed(seed)).backward()
    gradient = model.labels.weight.grad
    if not gradient.is_sparse:
        return gradient, set(range(N_LABELS))
    return gradient.to_dense(), set(gradient.coalesce().indices()[0].tolist())


def test_classifiers_start_along_their_label_text(points, label_texts):
    model, _ = make(points, label_texts, label_init="text", label_init_norm=0.5)
    assert torch.allclose(model.labels.weight.norm(dim=1), torch.tensor(0.5))
    zero, _ = make(points, label_texts, label_init="zero")
    assert float(zero.labels.weight.detach().abs().max()) == 0.0


def test_label_rows_can_be_left_out(points, label_texts):
    assert len(make(points, label_texts)[1]) == 3 + N_LABELS
    assert len(make(points, label_texts, label_rows=False)[1]) == 3


def test_full_bce_scores_every_label_of_every_query(points, label_texts):
    model, rows = make(points, label_texts, kind="full-bce", label_chunk=4)
    picked = np.array([4, 0, 2])
    loss = model.train_step(rows, picked, Rng.from_seed(1))
    batch = rows.texts.batch(picked)
    queries = model.encoder(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask))
    logits = queries @ model.labels.weight.T * 2.0 - 1.0
    targets = torch.from_numpy(rows.labels.toarray()[picked])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, targets, reduction="sum"
    )
    assert torch.allclose(loss, expected / 3, rtol=1e-5)


def test_all_labels_as_uniform_negatives_is_full_bce_in_value_and_gradients(points, label_texts):
    picked = np.arange(3 + N_LABELS)
    found = []
    for changes in (EVERY_LABEL, {"kind": "full-bce"}):
        model, rows = make(points, label_texts, **changes)
        loss = model.train_step(rows, picked, Rng.from_seed(1))
        loss.backward()
        words = model.encoder.words.weight.grad.to_dense()
        labels = model.labels.weight.grad
        found.append((loss, words, labels.to_dense() if labels.is_sparse else labels))
    for sampled, full in zip(*found, strict=True):
        assert torch.allclose(sampled, full, atol=1e-5)


@pytest.mark.parametrize("stale", [False, True])
def test_mean_of_sampled_losses_approaches_full_bce(points, label_texts, stale):
    """600 draws; the standard error of their mean is taken from the draws themselves."""
    exact, rows = make(points, label_texts, kind="full-bce")
    sampled, _ = make(points, label_texts, uniform_negatives=2, hard_negatives=2, hard_pool=3)
    sampled.refresh(rows)
    if stale:
        for model in (exact, sampled):
            model.labels.weight.data = model.labels.weight.data.flip(0)
    picked = np.arange(len(rows))
    expected = float(exact.train_step(rows, picked, Rng.from_seed(1)).detach())
    rng = Rng.from_seed(2)
    with torch.no_grad():
        losses = np.array([float(sampled.train_step(rows, picked, rng)) for _ in range(600)])
    error = losses.std() / np.sqrt(len(losses))
    assert error > 0
    assert abs(losses.mean() - expected) < 4 * error


def test_a_soft_target_is_met_by_every_kind(points, label_texts):
    soft = replace(points, labels=csr_array(points.labels * np.float32(0.25)))
    losses = []
    for changes in (EVERY_LABEL, {"kind": "full-bce"}):
        model, rows = make(soft, label_texts, label_rows=False, **changes)
        losses.append(float(model.train_step(rows, np.arange(3), Rng.from_seed(1)).detach()))
    hard, rows = make(points, label_texts, label_rows=False, kind="full-bce")
    # Left out as a negative, a positive costs softplus(s) - t s for any target t.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(
        float(hard.train_step(rows, np.arange(3), Rng.from_seed(1)).detach()), rel=1e-3
    )


def test_mined_negatives_are_never_positives(points, label_texts):
    model, rows = make(points, label_texts, hard_pool=4)
    model.refresh(rows)
    for row, mined in enumerate(model.hard.labels.tolist()):
        assert not set(mined) & set(rows.labels[[row]].indices.tolist())


def test_exact_search_finds_what_the_index_finds_on_few_labels(points, label_texts):
    models = [make(points, label_texts, hard_pool=4, search=how) for how in ("exact", "index")]
    for model, rows in models:
        model.refresh(rows)
    (exact, _), (index, _) = models
    assert torch.equal(exact.hard.labels, index.hard.labels)
    assert torch.equal(exact.hard.density, index.hard.density)


@pytest.mark.parametrize(("search", "exact"), [("exact", True), ("index", False)])
def test_the_configuration_says_how_to_search(points, label_texts, monkeypatch, search, exact):
    asked = []
    build_index = negatives.build_index

    def watching(vectors, exact=False):
        asked.append(exact)
        return build_index(vectors, exact)

    monkeypatch.setattr(negatives, "build_index", watching)
    model, rows = make(points, label_texts, search=search)
    model.refresh(rows)
    assert asked == [exact]


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({"uniform_only_epochs": 2, "refresh_epochs": 3}, [2, 5, 8]),
        ({"uniform_only_epochs": 0, "refresh_epochs": 1}, list(range(9))),
        ({"uniform_only_epochs": 4, "refresh_epochs": 0}, [4]),
        ({"hard_negatives": 0}, []),
        ({"kind": "full-bce"}, []),
    ],
)
def test_refresh_schedule_follows_the_configuration(points, label_texts, changes, epochs):
    model, _ = make(points, label_texts, **changes)
    assert [epoch for epoch in range(9) if model.wants_refresh(epoch)] == epochs


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_ignored_pair_is_no_negative_in_any_kind(points, label_texts, kind):
    """Label 4 is a wrong label of point 0: it is pushed away, unless the pair is ignored."""
    for given, pushed in ((points, True), (ignoring(points, 0, 4), False)):
        model, rows = make(given, label_texts, hard_pool=N_LABELS, **KINDS[kind])
        if kind != "full-bce":
            model.refresh(rows)
        gradient = sum(label_gradient(model, rows, 0, seed)[0] for seed in range(20))
        assert bool(gradient[4].abs().max() > 0) is pushed
        assert gradient[2].abs().max() > 0


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_pair_both_relevant_and_ignored_is_neither(points, label_texts, kind):
    model, rows = make(ignoring(points, 0, 3), label_texts, hard_pool=N_LABELS, **KINDS[kind])
    if kind != "full-bce":
        model.refresh(rows)
    gradient, _ = label_gradient(model, rows, 0)
    assert gradient[3].abs().max() == 0
    assert gradient[0].abs().max() > 0


def test_hard_only_draws_uniformly_until_it_has_mined_and_never_again(points, label_texts):
    changes = {"hard_only": True, "uniform_negatives": N_LABELS, "hard_negatives": 50}
    model, rows = make(points, label_texts, hard_pool=2, **changes)
    assert label_gradient(model, rows, 0)[1] == set(range(N_LABELS))
    model.refresh(rows)
    _, touched = label_gradient(model, rows, 0)
    assert touched == {0, 3} | set(model.hard.labels[0].tolist())
    assert len(touched) == 4


def test_mips_s_takes_the_nearest_labels_as_they_are(points, label_texts):
    changes = {"kind": "mips-s", "uniform_negatives": 1, "hard_negatives": 2}
    model, rows = make(points, label_texts, hard_pool=4, **changes)
    model.refresh(rows)
    for seed in range(5):
        model.labels.weight.grad = None
        model.train_step(rows, np.array([1]), Rng.from_seed(seed)).backward()
        touched = set(model.labels.weight.grad.coalesce().indices()[0].tolist())
        assert {1, *model.hard.labels[1, :2].tolist()} <= touched
        assert len(touched) <= 4


def test_mips_s_counts_a_nearest_label_once_where_the_pool_has_it_too(points, label_texts):
    """With all labels in the pool each negative counts once: the loss is full BCE's."""
    changes = {"kind": "mips-s", "uniform_negatives": N_LABELS, "hard_negatives": 2}
    model, rows = make(points, label_texts, hard_pool=4, **changes)
    full, _ = make(points, label_texts, model.encoder, kind="full-bce")
    batch = np.arange(3)
    model.refresh(rows)
    sampled, exact = (
        each.train_step(rows, batch, Rng.from_seed(1)).item() for each in (model, full)
    )
    assert sampled == pytest.approx(exact, rel=1e-5)


def test_self_normalised_weights_leave_out_what_a_query_knows(points, label_texts):
    """Without hard negatives and with all labels in the pool, every weight is 1."""
    changes = {"weights": "self-normalised", "uniform_negatives": N_LABELS}
    model, rows = make(ignoring(points, 1, 2), label_texts, **changes)
    full, _ = make(points, label_texts, model.encoder, kind="full-bce")
    batch = np.arange(3)
    sampled, exact = (
        each.train_step(rows, batch, Rng.from_seed(1)).item() for each in (model, full)
    )
    assert sampled == pytest.approx(exact, rel=1e-5)


def test_a_query_without_candidates_touches_no_label_for_its_empty_draws(points, label_texts):
    """Point 1 knows all labels but its positive as ignored: nothing is left to draw."""
    ignored = np.zeros((3, N_LABELS), np.float32)
    ignored[1] = [1, 0, 1, 1, 1, 1]
    given = replace(points, ignored=csr_array(ignored))
    model, rows = make(given, label_texts, hard_only=True, hard_negatives=3)
    model.refresh(rows)
    gradient, touched = label_gradient(model, rows, 1)
    assert touched == {1}
    assert torch.isfinite(gradient).all()


def test_dropout_keeps_the_expected_query(points, label_texts):
    """Half of the entries go, the rest double: the mean over many steps is the embedding."""
    model, rows = make(points, label_texts, dropout=0.5)
    rng = Rng.from_seed(3)
    with torch.no_grad():
        drawn = torch.stack([model._queries(rows, np.array([0]), rng)[0] for _ in range(2000)])
        whole = model._queries(rows, np.array([0]), rng)[0].abs() > 0
    model.config = model.config.model_copy(update={"dropout": 0.0})
    expected = model._queries(rows, np.array([0]), rng)[0].detach()
    assert not whole.all()
    assert torch.allclose(drawn.mean(dim=0), expected, atol=0.05)


def test_label_vectors_stay_on_the_host_if_configured(points, label_texts):
    for where, device in (("host", "cpu"), ("encoder", "meta")):
        model, _ = make(points, label_texts, label_device=where)
        model.place(torch.device("meta"), None)
        assert model.encoder.words.weight.device.type == "meta"
        assert model.labels.weight.device.type == device


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("where", ["host", "encoder"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_step_on_a_gpu_is_the_step_on_the_cpu(points, label_texts, kind, where):
    losses = []
    for device in ("cpu", "cuda"):
        model, rows = make(points, label_texts, label_device=where, **KINDS[kind])
        model.place(torch.device(device), None)
        if kind != "full-bce":
            model.refresh(rows)
        loss = model.train_step(rows, np.arange(len(rows)), Rng.from_seed(1))
        loss.backward()
        gradient = model.labels.weight.grad
        losses.append((loss.detach().cpu(), gradient.cpu().to_dense()))
    for ours, theirs in zip(*losses, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("kind", list(KINDS))
def test_bf16_stays_close_to_fp32(points, label_texts, kind):
    found = []
    for autocast in (None, torch.bfloat16):
        encoder = tiny_transformer()
        model, rows = make(points, label_texts, encoder=encoder, **KINDS[kind])
        model.place(torch.device("cpu"), autocast)
        if kind != "full-bce":
            model.refresh(rows)
        loss = model.train_step(rows, np.arange(len(rows)), Rng.from_seed(1))
        loss.backward()
        found.append((float(loss.detach()), encoder.projection.weight.grad))
    (fp32, one), (bf16, other) = found
    assert bf16 != fp32
    assert bf16 == pytest.approx(fp32, rel=0.02)
    assert torch.nn.functional.cosine_similarity(one.ravel(), other.ravel(), dim=0) > 0.98


def test_servable_vectors_give_the_training_logit_without_its_bias(points, label_texts):
    model, _ = make(points, label_texts)
    parts = model.servable()
    assert np.allclose(parts.label_vectors, model.labels.weight.detach().numpy() * 2.0)
