"""Warm start: a model begins as an earlier one ended (`train.start_from`).

The encoder and its tokenizer are the earlier ones. A label that the earlier model had keeps its
vector, by label id. A new one starts at its text, as in any training. A vanished one is dropped.
"""

import json
import shutil

import numpy as np
import torch
from safetensors.torch import load_file

from models.config import Config
from models.encoders.build import TextEncoder
from models.errors import RunError
from models.methods.astra import Astra
from models.runs import ARCHITECTURE_FILE, LABEL_IDS_FILE, MODEL_FILE, TOKENIZER_FILE, Run
from models.trained import load_model
from models.training.method import Method


def earlier_encoder(run: Run, earlier: Run, *, leads: bool) -> TextEncoder:
    """The earlier run's encoder; the rank that `leads` copies its tokenizer into the run's folder.

    Raises RunError where the two encoders, or what gives their vectors a scale, differ.
    """
    _check_fit(run.config, earlier)
    if leads:
        for name in (TOKENIZER_FILE, ARCHITECTURE_FILE):
            if earlier.has(name):
                shutil.copyfile(earlier.folder / name, run.folder / name)
    return load_model(earlier).encoder


def keep_label_vectors(model: Method, earlier: Run, uids: list[str]) -> dict[str, int]:
    """Set the vectors of labels that the earlier run had; `uids` are the model's labels.

    Returns how many labels were kept, are new and have vanished.
    """
    assert isinstance(model, Astra)  # the configuration refuses other methods
    names = json.loads((earlier.folder / LABEL_IDS_FILE).read_bytes())
    row_of = {name: row for row, name in enumerate(names)}
    rows = np.array([row_of.get(uid, -1) for uid in uids], np.int64)
    vectors = load_file(str(earlier.require(MODEL_FILE, "train")))["labels.weight"]
    own = torch.from_numpy(rows[model.shard])
    with torch.no_grad():
        weight = model.labels.weight
        weight[own >= 0] = vectors[own[own >= 0]].to(weight.device, weight.dtype)
    kept = int(np.count_nonzero(rows >= 0))
    return {"kept": kept, "new": len(uids) - kept, "vanished": len(names) - kept}


def _check_fit(config: Config, earlier: Run) -> None:
    old = earlier.config
    pairs = {
        "encoder": (config.encoder, old.encoder),
        "data.fields": (config.data.fields, old.data.fields),
        "method.score_scale": (config.method.score_scale, old.method.score_scale),
        "method.logit_bias": (config.method.logit_bias, old.method.logit_bias),
    }
    for key, (new, before) in pairs.items():
        if new != before:
            raise RunError(
                f"train.start_from {earlier.folder} was trained with another {key}: take its "
                f"{key}, or train from nothing"
            )
    if old.method.kind == "elias":
        raise RunError(f"train.start_from {earlier.folder} is of method elias: train from nothing")
