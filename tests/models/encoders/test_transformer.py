"""The transformer encoder: pooling, projection, norms, and what is left out of a source folder."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel, T5Config, T5Model

from models.encoders.bag import BagEncoder
from models.encoders.transformer import (
    BagTransformer,
    TransformerEncoder,
    architecture_of,
    build_backbone,
    load_backbone,
    positions_of,
)
from models.errors import SourceError
from tests.support.tiny_job import WIDTH, tiny_bert

IDS = torch.tensor([[2, 15, 9, 3], [2, 40, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


@pytest.fixture
def backbone():
    return tiny_bert()


@pytest.fixture
def folder(bert, tmp_path):
    """A copy of the source folder that a test may break."""
    return shutil.copytree(bert, tmp_path / "bert")


def states(backbone, ids, mask):
    return backbone(input_ids=ids, attention_mask=mask).last_hidden_state


def test_mean_pooling_is_the_mean_of_the_real_tokens(backbone):
    encoder = TransformerEncoder(backbone, "mean", WIDTH)
    expected = states(backbone, IDS, MASK)[1, :3].mean(dim=0)
    assert torch.allclose(encoder.pool(IDS, MASK)[1], expected, atol=1e-6)


def test_cls_pooling_is_the_first_token(backbone):
    encoder = TransformerEncoder(backbone, "cls", WIDTH)
    assert torch.equal(encoder.pool(IDS, MASK), states(backbone, IDS, MASK)[:, 0])


def test_the_mean_of_views_is_that_of_their_means(backbone):
    """Three title tokens weigh as much as one content token; an absent view weighs nothing."""
    encoder = TransformerEncoder(backbone, "mean", WIDTH, fields=2)
    marks = torch.tensor([[1, 1, 1, 2], [1, 1, 1, 0]])
    read = states(backbone, IDS, (marks > 0).long())
    expected = (read[0, :3].mean(dim=0) + read[0, 3]) / 2
    assert torch.allclose(encoder.pool(IDS, marks)[0], expected, atol=1e-6)
    assert torch.allclose(encoder.pool(IDS, marks)[1], read[1, :3].mean(dim=0), atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_changes_nothing(backbone, pooling):
    encoder = TransformerEncoder(backbone, pooling, WIDTH)
    alone = encoder(IDS[1:, :3], MASK[1:, :3])
    padded = encoder(torch.cat([IDS[1:], IDS[1:]], dim=1), torch.cat([MASK[1:], MASK[1:] * 0], 1))
    assert torch.allclose(alone, padded, atol=1e-6)


def test_an_unmasked_mean_would_be_told_apart(backbone):
    """The twin of the test above: what padding would do if it were counted."""
    encoder = TransformerEncoder(backbone, "mean", WIDTH)
    assert not torch.allclose(encoder(IDS, MASK)[1], encoder(IDS, MASK | 1)[1], atol=1e-3)


def test_rows_have_unit_norm_and_start_as_the_pooled_state(backbone):
    encoder = TransformerEncoder(backbone, "mean", WIDTH)
    rows, pooled = encoder(IDS, MASK), encoder.pool(IDS, MASK)
    assert torch.equal(encoder.projection.weight, torch.eye(WIDTH))
    assert torch.allclose(rows.norm(dim=1), torch.ones(2))
    assert torch.allclose(rows, torch.nn.functional.normalize(pooled, dim=1), atol=1e-6)


def test_a_narrower_projection_keeps_the_first_entries(backbone):
    encoder = TransformerEncoder(backbone, "mean", 10)
    expected = torch.nn.functional.normalize(encoder.pool(IDS, MASK)[:, :10], dim=1)
    assert encoder.dim == 10
    assert torch.allclose(encoder(IDS, MASK), expected, atol=1e-6)


def test_pooled_rows_stand_in_for_the_backbone(backbone):
    encoder = TransformerEncoder(backbone, "mean", WIDTH)
    expected, pooled = encoder(IDS, MASK), encoder.pool(IDS, MASK)
    encoder.backbone = None
    assert torch.allclose(encoder(IDS, MASK, pooled), expected, atol=1e-6)


def test_both_halves_stand_side_by_side_with_equal_weight(backbone):
    torch.manual_seed(1)
    bag = BagEncoder(torch.randn(60, 16), pair_buckets=32)
    transformer = TransformerEncoder(backbone, "mean", WIDTH)
    both = BagTransformer(bag, transformer)
    rows = both(IDS, MASK)
    assert both.dim == 16 + WIDTH
    assert torch.allclose(rows.norm(dim=1), torch.ones(2))
    assert torch.allclose(rows[:, :16] * 2**0.5, bag(IDS, MASK))
    assert torch.allclose(rows[:, 16:] * 2**0.5, transformer(IDS, MASK))


def test_a_loaded_backbone_computes_what_the_folder_holds(bert, capfd):
    loaded = load_backbone(bert)
    again = build_backbone(architecture_of(loaded))
    again.load_state_dict(load_file(bert / "model.safetensors"))
    assert torch.equal(states(loaded, IDS, MASK), states(again, IDS, MASK))
    assert torch.allclose(
        states(loaded, IDS, MASK), states(tiny_bert(len_of(loaded)), IDS, MASK), atol=1e-6
    )
    assert capfd.readouterr() == ("", "")


def len_of(backbone):
    return backbone.get_input_embeddings().num_embeddings


def test_a_pooling_layer_of_the_source_is_left_out(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
    )
    model = BertModel(config)
    save_file(model.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(config.to_json_string(use_diff=False))
    backbone = load_backbone(tmp_path)
    assert not [name for name in backbone.state_dict() if name.startswith("pooler")]
    again = build_backbone(architecture_of(backbone))
    again.load_state_dict(backbone.state_dict())


def test_half_precision_sources_are_widened(folder):
    weights = load_file(folder / "model.safetensors")
    halves = {name: tensor.half() for name, tensor in weights.items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    backbone = load_backbone(folder)
    again = build_backbone(architecture_of(backbone))
    for model in (backbone, again):
        assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_positions_are_counted_as_the_family_counts_them(backbone):
    assert positions_of(backbone) == 64
    config = RobertaConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=34,
    )
    assert positions_of(RobertaModel(config)) == 32
    assert positions_of(torch.nn.Linear(2, 2)) is None


def test_an_encoder_with_a_decoder_is_refused(tmp_path):
    """It would load, and fail in the middle of a training."""
    config = T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    model = T5Model(config)
    model.save_pretrained(tmp_path)
    with pytest.raises(SourceError, match="holds T5Model, an encoder with a decoder"):
        load_backbone(tmp_path)


def test_a_folder_without_a_configuration_is_refused(folder):
    (folder / "config.json").unlink()
    with pytest.raises(SourceError, match=r"config\.json is not there"):
        load_backbone(folder)


@pytest.mark.parametrize("text", ["{}", "not json", '{"model_type": "no-such-model"}'])
def test_a_configuration_of_no_transformer_is_refused_in_one_line(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(SourceError, match="holds no transformer that can be loaded") as raised:
        load_backbone(folder)
    assert "\n" not in str(raised.value)


def test_weights_that_are_no_weights_are_refused(folder):
    (folder / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(SourceError, match="holds no transformer that can be loaded"):
        load_backbone(folder)


def test_missing_layers_are_refused_and_not_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer.1." not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r"lacks 16 weights, such as encoder\.layer\.1"):
        load_backbone(folder)
