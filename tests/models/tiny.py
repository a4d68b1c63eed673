"""A training job small enough for tests: synthetic words, a scratch tokenizer, a few labels."""

from pathlib import Path

from models.config import Config, load_config
from models.data.formats import write_dataset
from models.data.synthetic import synthetic_dataset

N_LABELS = 60

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


def write_tiny_job(folder: Path, *overrides: str) -> Config:
    """Write a synthetic data set and a TOML file into `folder`; returns the configuration."""
    data = folder / "data"
    if not data.is_dir():
        write_dataset(data, synthetic_dataset(N_LABELS, 900, 200, seed=11))
    path = folder / "tiny.toml"
    path.write_text(TOML.format(folder=data.as_posix()), encoding="utf-8")
    return load_config(path, overrides)
