"""A job small enough for tests: synthetic words, a few labels, a transformer of two layers."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from models.config import Config, load_config
from models.data.dataset import Dataset
from models.data.formats import write_dataset
from models.data.tokens import TokenizedTexts
from models.encoders.bag import train_tokenizer
from models.encoders.transformer import TransformerEncoder
from tests.support.synthetic import synthetic_dataset

N_LABELS = 60
WIDTH = 24

TOML = """
seed = 5
[data]
path = "{folder}"
[validation]
points = 60
[encoder]
source = "scratch"
dim = 24
pair_buckets = 512
max_tokens = 24
scratch_vocabulary = 400
[method]
uniform_negatives = 30
hard_negatives = 8
hard_pool = 16
logit_bias = -4.0
dropout = 0.1
[train]
epochs = 4
batch_size = 64
encoder_lr = 0.02
label_lr = 0.05
warmup_steps = 5
[index]
m = 8
ef_construction = 40
[release]
golden_queries = 5
"""


def tiny_dataset() -> Dataset:
    """Points of a few synthetic words, each with some of the labels."""
    return synthetic_dataset(N_LABELS, 900, 200, seed=11)


def one_word_texts(n: int) -> TokenizedTexts:
    """So many texts of one word each, all different, between the marks of start and end."""
    ids = np.tile(np.array([1, 0, 2], np.int32), n)
    ids[1::3] = np.arange(9, 9 + n)
    return TokenizedTexts(ids, np.arange(0, 3 * n + 1, 3), 0)


def tiny_bert(vocabulary: int = 400) -> BertModel:
    """A random backbone of two layers, always the same."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    return BertModel(config, add_pooling_layer=False).eval()


def tiny_transformer() -> TransformerEncoder:
    """The backbone as an encoder, trained from end to end."""
    return TransformerEncoder(tiny_bert(), "mean", WIDTH)


def write_tiny_bert(folder: Path) -> Path:
    """A source folder as a hub would give it, with a tokenizer of the tiny data set's words."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = tiny_dataset()
    tokenizer = train_tokenizer([*dataset.train.titles, *dataset.labels.titles], 400)
    tokenizer.save(str(folder / "tokenizer.json"))
    backbone = tiny_bert(tokenizer.get_vocab_size())
    (folder / "config.json").write_text(backbone.config.to_json_string(use_diff=False))
    save_file(backbone.state_dict(), folder / "model.safetensors", {"format": "pt"})
    return folder


def write_tiny_job(folder: Path, *overrides: str) -> Config:
    """Write a synthetic data set and a TOML file into `folder`; returns the configuration."""
    data = folder / "data"
    if not data.is_dir():
        write_dataset(data, tiny_dataset())
    path = folder / "tiny.toml"
    path.write_text(TOML.format(folder=data.as_posix()), encoding="utf-8")
    return load_config(path, overrides)


@contextmanager
def full_disk(n_bytes: int) -> Iterator[None]:
    """No file may grow beyond `n_bytes`: writing more fails as on a full disk, for real."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
