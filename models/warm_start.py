"""Warm start: a model begins as an earlier one ended (`train.start_from`).

The encoder and its tokenizer are the earlier ones. A label that the earlier model had keeps its
vector, by label id. A new one starts at its text, as in any training. A vanished one is dropped.
"""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from models.config import Config
from models.data.dataset import Dataset, label_texts, point_texts
from models.data.earlier import earlier_run, write_earlier
from models.encoders.build import TextEncoder, build_encoder, transformer_of
from models.encoders.transformer import architecture_of
from models.errors import RunError
from models.methods.astra import Astra
from models.runs import ARCHITECTURE_FILE, LABEL_IDS_FILE, MODEL_FILE, TOKENIZER_FILE, Run
from models.trained import load_model
from models.training.distributed import World
from models.training.method import Method
from service.atomic import write_text

log = logging.getLogger(__name__)


def earlier_encoder(run: Run, world: World) -> TextEncoder:
    """The earlier run's encoder; the first rank copies its tokenizer into the run's folder.

    Raises RunError where the two encoders, or what gives their vectors a scale, differ.
    """
    earlier = earlier_run(Path(run.config.train.start_from))
    _check_fit(run.config, earlier)
    if world.leads:
        for name in (TOKENIZER_FILE, ARCHITECTURE_FILE):
            if earlier.has(name):
                shutil.copyfile(earlier.folder / name, run.folder / name)
    world.wait()
    return load_model(earlier).encoder


def first_encoder(
    run: Run, dataset: Dataset, train_rows: NDArray[np.int64], world: World
) -> TextEncoder:
    """The untrained encoder, or that of `train.start_from`.

    `train_rows` are the rows of the training points. Writes the tokenizer, and a transformer's
    architecture.
    """
    config = run.config
    if world.leads:
        write_earlier(run, dataset, train_rows)
    if config.train.start_from:
        return earlier_encoder(run, world)
    texts = point_texts(dataset.train, config.data.fields)
    corpus = [texts[row] for row in train_rows]
    corpus += label_texts(dataset.labels, config.data.label_fields)
    encoder, tokenizer_json = build_encoder(config.encoder, corpus, config.seed)
    if world.leads:
        write_text(run.folder / TOKENIZER_FILE, tokenizer_json)
        if (transformer := transformer_of(encoder)) is not None:
            write_text(run.folder / ARCHITECTURE_FILE, architecture_of(transformer.backbone))
    world.wait()
    return encoder


def keep_label_vectors(model: Method, run: Run, uids: list[str]) -> None:
    """Set the vectors of labels that the earlier run had; `uids` are the model's labels.

    Records how many labels were kept, are new and have vanished.
    """
    earlier = earlier_run(Path(run.config.train.start_from))
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
    counts = {"kept": kept, "new": len(uids) - kept, "vanished": len(names) - kept}
    log.info("going on from %s; labels: %s", earlier.folder, counts)
    if model.world.leads:
        run.record(started_from={"run": str(earlier.folder), "labels": counts})


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
