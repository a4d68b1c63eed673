"""ASTRA: what it is built from, what a step does, and that its loss is the loss it stands for."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from models.config import MethodConfig
from models.data.tokens import TokenizedTexts
from models.encoders.bag import BagEncoder
from models.losses import full_bce
from models.methods.astra import TrainingRows, build, positives_of, servable, with_label_rows
from models.rng import Rng

N_LABELS = 6


@pytest.fixture
def points():
    ids = np.array([1, 5, 2, 1, 6, 7, 2, 1, 8, 2], np.int32)
    labels = csr_array(np.array([[1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]], "f"))
    return TrainingRows(TokenizedTexts(ids, np.array([0, 3, 7, 10]), 0), labels)


@pytest.fixture
def label_texts():
    ids = np.tile(np.array([1, 9, 2], np.int32), N_LABELS)
    ids[1::3] = np.arange(9, 9 + N_LABELS)
    return TokenizedTexts(ids, np.arange(0, 3 * N_LABELS + 1, 3), 0)


def make(points, label_texts, **changes):
    torch.manual_seed(0)
    encoder = BagEncoder(torch.randn(20, 8), pair_buckets=32)
    config = MethodConfig(**{"dropout": 0.0, "logit_bias": -1.0, "score_scale": 2.0} | changes)
    return build(encoder, label_texts, config, points)


def test_label_texts_join_the_rows_with_themselves_as_target(points, label_texts):
    rows = with_label_rows(points, label_texts)
    assert len(rows) == 3 + N_LABELS
    assert (rows.labels.toarray()[3:] == np.eye(N_LABELS)).all()
    assert rows.texts.batch(np.array([4])).ids.tolist() == [[1, 10, 2]]


def test_label_rows_can_be_left_out(points, label_texts):
    _, rows = make(points, label_texts, label_rows=False)
    assert len(rows) == 3


def test_classifiers_start_along_their_label_text(points, label_texts):
    model, _ = make(points, label_texts, label_init="text", label_init_norm=0.5)
    assert torch.allclose(model.labels.weight.norm(dim=1), torch.tensor(0.5))
    zero, _ = make(points, label_texts, label_init="zero")
    assert float(zero.labels.weight.detach().abs().max()) == 0.0


def test_all_labels_as_uniform_negatives_is_full_bce(points, label_texts):
    model, rows = make(points, label_texts, uniform_negatives=N_LABELS, hard_negatives=0)
    picked = np.arange(len(rows))
    loss = model.train_step(rows, picked, Rng.from_seed(1))
    batch = rows.texts.batch(picked)
    queries = model.encoder(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask))
    logits = queries @ model.labels.weight.T * 2.0 - 1.0
    assert torch.allclose(loss, full_bce(logits, *positives_of(rows.labels, picked)), rtol=1e-5)


def test_mean_of_sampled_losses_approaches_full_bce(points, label_texts):
    """600 draws; the standard error of their mean is taken from the draws themselves."""
    exact, rows = make(points, label_texts, uniform_negatives=N_LABELS, hard_negatives=0)
    picked = np.arange(len(rows))
    expected = float(exact.train_step(rows, picked, Rng.from_seed(1)).detach())
    changes = {"uniform_negatives": 2, "hard_negatives": 2, "hard_pool": 3}
    sampled, _ = make(points, label_texts, **changes)
    sampled.refresh(rows)
    rng = Rng.from_seed(2)
    with torch.no_grad():
        losses = np.array([float(sampled.train_step(rows, picked, rng)) for _ in range(600)])
    error = losses.std() / np.sqrt(len(losses))
    assert abs(losses.mean() - expected) < 4 * error


def test_mined_negatives_are_never_positives(points, label_texts):
    model, rows = make(points, label_texts, hard_pool=4)
    model.refresh(rows)
    for row, mined in enumerate(model.hard.labels.tolist()):
        assert not set(mined) & set(rows.labels[[row]].indices.tolist())


def test_refresh_schedule_follows_the_configuration(points, label_texts):
    model, _ = make(points, label_texts, uniform_only_epochs=2, refresh_epochs=3)
    assert [epoch for epoch in range(9) if model.wants_refresh(epoch)] == [2, 5, 8]


def test_servable_vectors_give_the_training_logit_without_its_bias(points, label_texts):
    model, _ = make(points, label_texts)
    parts = servable(model)
    assert np.allclose(parts.label_vectors, model.labels.weight.detach().numpy() * 2.0)


def test_positives_come_with_their_place_in_the_batch(points):
    rows, labels = positives_of(points.labels, np.array([2, 0]))
    assert rows.tolist() == [0, 1, 1]
    assert labels.tolist() == [5, 0, 3]
