"""A narrowing projection starts where it keeps the most of what its texts tell apart."""

import numpy as np
import pytest
import torch

from models.data.tokens import TokenizedTexts
from models.encoders import projection
from models.encoders.projection import start_at_principal_axes
from models.encoders.transformer import TransformerEncoder
from tests.support.tiny_job import WIDTH, one_word_texts, tiny_bert

DIM = 4


def texts_with(pooled):
    return TokenizedTexts(
        np.ones(len(pooled), np.int32), np.arange(len(pooled) + 1), 0, pooled.astype(np.float16)
    )


@pytest.fixture
def encoder():
    return TransformerEncoder(tiny_bert(), "mean", DIM)


def test_rows_that_lie_in_few_dimensions_keep_every_inner_product(encoder):
    """The rows span four axes, of which the first four coordinates hold next to nothing."""
    generator = np.random.default_rng(1)
    axes = np.linalg.qr(generator.standard_normal((WIDTH, DIM)))[0].T
    axes[:, :DIM] *= 0.01
    rows = generator.standard_normal((50, DIM)) @ axes
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    start_at_principal_axes(encoder, texts_with(rows))
    weight = encoder.projection.weight.detach()
    narrow = rows @ weight.numpy().T
    assert np.abs(narrow @ narrow.T - rows @ rows.T).max() < 5e-3
    assert torch.allclose(weight @ weight.T, torch.eye(DIM), atol=1e-5)


def test_a_backbone_that_is_trained_gives_the_rows_itself(encoder, monkeypatch):
    monkeypatch.setattr(projection, "SAMPLE_TEXTS", 30)
    texts = one_word_texts(90)
    start_at_principal_axes(encoder, texts)
    with torch.no_grad():
        batch = texts.batch(np.arange(90))
        rows = encoder.pool(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask))
    rows = torch.nn.functional.normalize(rows, dim=1)
    kept = (rows @ encoder.projection.weight.T).norm() / rows.norm()
    assert kept > 1.1 * rows[:, :DIM].norm() / rows.norm()


def test_a_projection_that_narrows_nothing_stays_the_identity():
    encoder = TransformerEncoder(tiny_bert(), "mean", WIDTH)
    start_at_principal_axes(encoder, one_word_texts(5))
    assert torch.equal(encoder.projection.weight, torch.eye(WIDTH))
