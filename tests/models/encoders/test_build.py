"""From a configuration to each kind of encoder, what of it is trained, and back from weights."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.config import EncoderConfig, TrainConfig
from models.data.tokens import tokenize_texts
from models.encoders import build
from models.encoders.bag import BagEncoder
from models.encoders.build import (
    bag_of,
    build_encoder,
    embed,
    empty_encoder,
    encode_batch,
    parameter_groups,
    transformer_of,
)
from models.encoders.transformer import BagTransformer, TransformerEncoder, architecture_of
from models.errors import SourceError
from models.training.optimizers import Optimizers
from service.core.encoding.tokenizer import Tokenizer
from tests.support.tiny_job import WIDTH

KINDS = {"bag": BagEncoder, "transformer": TransformerEncoder, "bag+transformer": BagTransformer}
WITH_TRANSFORMER = ["transformer", "bag+transformer"]


def config(bert, **changes):
    given = {"source": str(bert), "dim": WIDTH, "pair_buckets": 64, "max_tokens": 16} | changes
    return EncoderConfig(**given)


@pytest.fixture
def texts(bert):
    words = ["baw cuv", "dex", "fip gor hul jam kes", "", "baw baw"]
    return tokenize_texts(Tokenizer(bert / "tokenizer.json", 16), words)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_is_built_with_the_tokenizer_of_its_source(bert, texts, tmp_path, kind):
    encoder, tokenizer_json = build_encoder(config(bert, kind=kind), [], seed=1)
    assert type(encoder) is KINDS[kind]
    assert encoder.dim == (2 * WIDTH if kind == "bag+transformer" else WIDTH)
    (tmp_path / "t.json").write_text(tokenizer_json, encoding="utf-8")
    ours, theirs = (Tokenizer(path, 16) for path in (tmp_path / "t.json", bert / "tokenizer.json"))
    assert ours.tokenize(["baw cuv"])[0].ids == theirs.tokenize(["baw cuv"])[0].ids
    assert np.linalg.norm(embed(encoder, texts), axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", WITH_TRANSFORMER)
def test_scratch_is_refused_for_transformers(kind):
    with pytest.raises(SourceError, match=r"needs a pretrained encoder\.source"):
        build_encoder(EncoderConfig(kind=kind, source="scratch"), ["a b"], seed=1)


@pytest.mark.parametrize("kind", WITH_TRANSFORMER)
@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json"])
def test_a_source_that_lacks_a_file_says_which(bert, tmp_path, kind, name):
    folder = shutil.copytree(bert, tmp_path / "bert")
    (folder / name).unlink()
    with pytest.raises(SourceError, match=rf"{name} is not there"):
        build_encoder(config(folder, kind=kind), [], seed=1)


def test_more_tokens_than_the_backbone_can_place_are_refused(bert):
    with pytest.raises(SourceError, match=r"at most 64 tokens, encoder\.max_tokens is 65"):
        build_encoder(config(bert, kind="transformer", max_tokens=65), [], seed=1)
    build_encoder(config(bert, kind="transformer", max_tokens=64), [], seed=1)


def test_parameters_are_grouped_by_how_they_are_trained(bert):
    def groups(**changes):
        encoder, _ = build_encoder(config(bert, **changes), [], seed=1)
        return set(parameter_groups(encoder))

    assert groups(kind="bag") == {"tables"}
    assert groups(kind="transformer", frozen=True) == {"projection"}
    assert groups(kind="transformer", frozen=False) == {"projection", "transformer"}
    assert groups(kind="bag+transformer", frozen=False) == {"tables", "projection", "transformer"}


@pytest.mark.parametrize("kind", WITH_TRANSFORMER)
@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_backbone_never_moves_and_another_does(bert, texts, kind, frozen):
    encoder, _ = build_encoder(config(bert, kind=kind, frozen=frozen), [], seed=1)
    backbone = transformer_of(encoder).backbone
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    projection = transformer_of(encoder).projection.weight.detach().clone()
    optimizers = Optimizers(parameter_groups(encoder), TrainConfig())
    for _ in range(2):
        optimizers.zero_grad()
        encode_batch(encoder, texts, np.arange(5))[:, -3:].sum().backward()
        optimizers.step(1.0, torch.amp.GradScaler(enabled=False))
    moved = {n for n, tensor in backbone.state_dict().items() if not torch.equal(tensor, before[n])}
    gradients = {name for name, p in backbone.named_parameters() if p.grad is not None}
    if frozen:
        assert (moved, gradients) == (set(), set())
    else:
        assert {"encoder.layer.0.attention.self.query.weight"} <= moved
        assert moved == gradients
    assert not torch.equal(transformer_of(encoder).projection.weight, projection)


def test_embedding_all_texts_is_embedding_each_alone(bert, texts):
    encoder, _ = build_encoder(config(bert, kind="bag+transformer"), [], seed=1)
    together = embed(encoder, texts)
    alone = [encode_batch(encoder, texts, np.array([row]))[0].detach() for row in range(5)]
    assert np.abs(together - torch.stack(alone).numpy()).max() < 1e-5


def test_a_batch_is_in_the_order_asked_for_however_its_texts_are_grouped(bert, texts, monkeypatch):
    monkeypatch.setattr(build, "_PASS_TOKENS", 7)
    encoder, _ = build_encoder(config(bert, kind="transformer"), [], seed=1)
    picked = np.array([2, 0, 3, 4, 1, 0])
    together = encode_batch(encoder, texts, picked)
    alone = [encode_batch(encoder, texts, picked[place : place + 1])[0] for place in range(6)]
    assert torch.allclose(together, torch.stack(alone), atol=1e-6)


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_encoder_comes_back_from_its_weights(bert, texts, kind):
    given = config(bert, kind=kind, pooling="mean")
    encoder, _ = build_encoder(given, [], seed=1)
    if bag_of(encoder) is not None:
        torch.nn.init.normal_(bag_of(encoder).pairs.weight)
    transformer = transformer_of(encoder)
    architecture = None if transformer is None else architecture_of(transformer.backbone)
    weights = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    again = empty_encoder(given, weights, architecture)
    again.load_state_dict(weights)
    assert type(again) is KINDS[kind]
    assert np.array_equal(embed(again, texts), embed(encoder, texts))


def test_views_widen_a_bag_and_not_a_transformer(bert, texts):
    """They come back from weights, and need as many positions as all views together."""
    given = config(bert, kind="bag+transformer", pooling="mean", field_tokens=[8, 16])
    encoder, _ = build_encoder(given, [], seed=1)
    assert encoder.dim == 2 * WIDTH + WIDTH
    weights = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    again = empty_encoder(given, weights, architecture_of(transformer_of(encoder).backbone))
    again.load_state_dict(weights)
    marked = replace(texts, marks=np.resize([1, 2, 2], len(texts.ids)).astype(np.int8))
    rows = embed(again, marked)
    assert np.array_equal(rows, embed(encoder, marked))
    assert np.abs(rows - embed(encoder, texts)).max() > 0.1
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
    with pytest.raises(SourceError, match=r"at most 64 tokens, encoder\.field_tokens is 65"):
        build_encoder(config(bert, kind="transformer", field_tokens=[40, 25]), [], seed=1)
