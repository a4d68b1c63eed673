"""Each architecture of transformers that the documentation names loads, exports, and computes what
the library itself computes from the same text. A line of `ARCHITECTURES` adds one.
"""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from models.config import EncoderConfig
from models.data.tokens import tokenize_texts
from models.encoders.bag import train_tokenizer
from models.encoders.build import build_encoder, embed, empty_encoder
from models.encoders.source import word_vectors
from models.encoders.transformer import architecture_of
from models.errors import SourceError
from models.export.export_onnx import encode_with, trace
from models.export.precision import at_precision
from service.core.encoding.encoder import OnnxEncoder
from service.core.encoding.tokenizer import Tokenizer

WIDTH, POSITIONS = 32, 66
WORDS = ["whale", "sea", "a hunt at sea", "the white whale", "of ships and men, and the sea", "men"]
TEXTS = [*WORDS, " ".join(WORDS), "", "whale sea", "sea whale"]
SIZES = {
    "vocab_size": 120,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
}
LIKE_DISTILBERT = {"dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}
MARKS = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0) | {
    "cls_token_id": 2,
    "sep_token_id": 3,
}

# name: its configuration, and how many tokens it has positions for (None: no limit)
ARCHITECTURES = {
    "bert": (BertConfig(**SIZES), POSITIONS),
    "distilbert": (DistilBertConfig(**SIZES, **LIKE_DISTILBERT), POSITIONS),
    "roberta": (RobertaConfig(**SIZES), POSITIONS - 2),
    "xlm-roberta": (XLMRobertaConfig(**SIZES), POSITIONS - 2),
    "mpnet": (MPNetConfig(**SIZES), POSITIONS - 2),
    "electra": (ElectraConfig(**SIZES, embedding_size=16), POSITIONS),
    "albert": (AlbertConfig(**SIZES, embedding_size=16), POSITIONS),
    "modernbert": (
        ModernBertConfig(**SIZES, **MARKS, local_attention=8, global_attn_every_n_layers=2),
        None,
    ),
}
TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3, "int8": 5e-2}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def source(request, tmp_path_factory):
    """A source folder as a hub would give it, with weights that let the order of words count."""
    folder = tmp_path_factory.mktemp("source") / request.param
    folder.mkdir()
    config, positions = ARCHITECTURES[request.param]
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    (folder / "config.json").write_text(model.config.to_json_string(use_diff=False))
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    train_tokenizer(TEXTS, 120).save(str(folder / "tokenizer.json"))
    return SimpleNamespace(name=request.param, folder=folder, model=model, positions=positions)


@pytest.fixture(scope="module")
def texts(source):
    return tokenize_texts(Tokenizer(source.folder / "tokenizer.json", 64), TEXTS)


@pytest.fixture(scope="module")
def encoder(source):
    config = EncoderConfig(kind="transformer", source=str(source.folder), dim=WIDTH, max_tokens=64)
    return build_encoder(config, [], seed=1)[0]


@pytest.fixture(scope="module")
def graphs(encoder, texts, tmp_path_factory):
    """The exported encoder in each precision."""
    folder, traced = tmp_path_factory.mktemp("onnx"), trace(encoder)
    for precision in TOLERANCES:
        onnx.save(at_precision(traced, precision, texts), folder / precision)
    return {precision: OnnxEncoder(folder / precision, "cpu") for precision in TOLERANCES}


def by_the_library(model, texts):
    """The mean states of the texts, padded and marked as the library's own tokenizers do it."""
    lengths = np.diff(texts.offsets)
    shape = (len(texts), lengths.max())
    ids = torch.full(shape, model.config.pad_token_id)
    mask = torch.from_numpy(np.arange(shape[1]) < lengths[:, None]).long()
    ids[mask.bool()] = torch.from_numpy(texts.ids).long()
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    means = (states * mask.unsqueeze(2)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    return torch.nn.functional.normalize(means, dim=1).numpy()


def test_torch_and_every_precision_compute_what_the_library_does(source, encoder, graphs, texts):
    expected = by_the_library(source.model, texts)
    assert np.abs(embed(encoder, texts) - expected).max() < 1e-5
    for precision, tolerance in TOLERANCES.items():
        assert np.abs(encode_with(graphs[precision], texts) - expected).max() < tolerance
    swapped = expected[TEXTS.index("whale sea")] - expected[TEXTS.index("sea whale")]
    assert np.abs(swapped).max() > 100 * TOLERANCES["fp32"], "a wrong position would not show"


def test_int8_multiplies_in_integers_and_moves_no_first_label(encoder, graphs, texts):
    labels = np.random.default_rng(3).standard_normal((6, WIDTH), np.float32)
    first = [(encode_with(graphs[name], texts) @ labels.T).argmax(axis=1) for name in TOLERANCES]
    assert (first[0] == first[1]).all()
    assert (first[0] == first[2]).mean() >= 0.9


def test_no_more_tokens_are_read_than_there_are_positions(source):
    def build(max_tokens):
        given = {"kind": "transformer", "source": str(source.folder), "dim": WIDTH}
        return build_encoder(EncoderConfig(**given, max_tokens=max_tokens), [], seed=1)

    if source.positions is None:
        build(8 * POSITIONS)
        return
    build(source.positions)
    with pytest.raises(SourceError, match=f"reads at most {source.positions} tokens"):
        build(source.positions + 1)


def test_it_comes_back_from_its_weights_and_gives_a_bag_its_words(source, encoder, texts):
    given = EncoderConfig(kind="transformer", source="gone", dim=WIDTH, pooling="mean")
    weights = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    again = empty_encoder(given, weights, architecture_of(encoder.backbone))
    again.load_state_dict(weights)
    assert np.array_equal(embed(again, texts), embed(encoder, texts))
    assert word_vectors(source.folder).shape[0] == SIZES["vocab_size"]
