"""The cache of a frozen transformer: computed once, named by what went in, never half written."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.data.tokens import TokenizedTexts
from models.encoders import frozen
from models.encoders.frozen import cached_pooled, pool_all
from tests.support.tiny_job import WIDTH, tiny_transformer


class Killed(BaseException):
    """Stands for a SIGKILL: nothing may catch it."""


@pytest.fixture
def encoder():
    return tiny_transformer()


@pytest.fixture
def texts():
    """40 texts of 1 to 9 tokens."""
    generator = np.random.default_rng(1)
    lengths = generator.integers(1, 10, 40)
    ids = generator.integers(1, 400, lengths.sum()).astype(np.int32)
    return TokenizedTexts(ids, np.concatenate([[0], np.cumsum(lengths)]), 0)


@pytest.fixture
def broken(monkeypatch):
    """From here on the backbone cannot run."""

    def fail(*_):
        pytest.fail("the backbone ran again")

    return lambda: monkeypatch.setattr(frozen, "pool_all", fail)


def test_rows_are_what_the_backbone_gives_each_text_alone(encoder, texts, monkeypatch):
    monkeypatch.setattr(frozen, "_BATCH_TOKENS", 30)
    rows = pool_all(encoder, texts)
    assert rows.shape == (40, WIDTH)
    assert rows.dtype == np.float16
    for row in (0, 7, 39):
        batch = texts.batch(np.array([row]))
        with torch.no_grad():
            alone = encoder.pool(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask))
        assert np.abs(rows[row] - alone[0].numpy()).max() < 2e-3


def test_texts_whose_fields_part_elsewhere_have_a_cache_of_their_own(encoder, texts, tmp_path):
    encoder.fields = 2
    titles, contents = (
        cached_pooled(
            encoder, replace(texts, marks=np.full(len(texts.ids), mark, np.int8)), tmp_path
        )
        for mark in (1, 2)
    )
    split = np.resize([1, 2], len(texts.ids)).astype(np.int8)
    both = cached_pooled(encoder, replace(texts, marks=split), tmp_path)
    assert np.array_equal(titles, contents)
    assert np.abs(np.array(both) - titles).max() > 1e-3
    assert len(list(tmp_path.glob("*.npy"))) == 3


def test_the_second_call_reads_what_the_first_wrote(encoder, texts, tmp_path, broken):
    first = np.array(cached_pooled(encoder, texts, tmp_path / "cache"))
    broken()
    second = cached_pooled(encoder, texts, tmp_path / "cache")
    assert np.array_equal(first, second)
    assert isinstance(second, np.memmap)


def test_other_weights_texts_or_pooling_are_other_files(encoder, texts, tmp_path):
    cached_pooled(encoder, texts, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    cached_pooled(encoder, texts.take(np.arange(39)), tmp_path)
    reordered = texts.take(np.arange(40)[::-1].copy())
    assert np.array_equal(
        cached_pooled(encoder, reordered, tmp_path), cached_pooled(encoder, texts, tmp_path)[::-1]
    )
    encoder.pooling = "cls"
    cached_pooled(encoder, texts, tmp_path)
    with torch.no_grad():
        encoder.backbone.encoder.layer[1].output.dense.weight[0, 0] += 1e-3
    cached_pooled(encoder, texts, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_what_is_trained_behind_the_backbone_does_not_name_the_file(encoder, texts, tmp_path):
    cached_pooled(encoder, texts, tmp_path)
    with torch.no_grad():
        encoder.projection.weight.mul_(2.0)
    cached_pooled(encoder, texts, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_killed_while_writing_nothing_is_left_and_the_next_call_does_it(
    encoder, texts, tmp_path, monkeypatch
):
    save = np.save

    def dying(file, rows, **options):
        save(file, rows[:5], **options)
        raise Killed

    monkeypatch.setattr(frozen.np, "save", dying)
    with pytest.raises(Killed):
        cached_pooled(encoder, texts, tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert len(cached_pooled(encoder, texts, tmp_path)) == 40
