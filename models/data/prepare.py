"""From a data folder to what a method trains on: split, tokenized, counted.

Every stage comes through here, so all of them see the same split and the same tokens.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.config import Config, load_config
from models.data.dataset import Dataset, label_texts, point_texts
from models.data.filters import check_item_ids, with_own_items
from models.data.formats import open_dataset
from models.data.splits import validation_split
from models.data.tokens import TokenizedTexts, tokenize_texts
from models.errors import ConfigError, DataError
from models.rng import Rng
from service.core.encoding.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Split:
    """Rows of the training points that are trained on, and those that everything is chosen on."""

    train_rows: NDArray[np.int64]
    validation_rows: NDArray[np.int64]

    @property
    def sha256(self) -> str:
        """Names the split: the hash of the rows that are set aside."""
        return hashlib.sha256(self.validation_rows.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class TokenizedData:
    """Training points, validation points and labels as token ids."""

    train: TokenizedTexts
    validation: TokenizedTexts
    labels: TokenizedTexts


def load_config_with_data(path: Path, overrides: Sequence[str] = ()) -> Config:
    """A configuration as `load_config` reads it, whose data folder is there.

    Raises ConfigError, which for a folder that is not there repeats what the file says of it after
    `Data:` in the comment at its head.
    """
    config = load_config(path, overrides)
    folder = config.data.path
    if not Path(folder).exists():
        advice = _data_advice(path, folder) or (
            "put a data set there (docs/training.md, Data), or name another folder "
            "with --set data.path=FOLDER"
        )
        raise ConfigError(f"{path}: its data folder {folder} is not there: {advice}")
    return config


def _data_advice(path: Path, folder: str) -> str:
    """What the file says about where this folder comes from; empty if it says nothing."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head = [line.strip("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]
    advice = " ".join(head).partition("Data: ")[2]
    return advice if folder in advice else ""


def open_configured(config: Config) -> Dataset:
    """The data set of a config, with the filters that `data.own_item` adds. Raises DataError."""
    folder = Path(config.data.path)
    dataset = open_dataset(folder)
    check_item_ids(dataset, folder)
    return with_own_items(dataset) if config.data.own_item else dataset


def split(config: Config, dataset: Dataset) -> Split:
    """Cut the validation split; the same for the same config and data.

    Raises ConfigError, and DataError where no point has a label.
    """
    if not dataset.train.labels.nnz:
        expected = "training points of which some have labels"
        raise DataError(Path(config.data.path), None, expected, "none that has one")
    wanted = config.validation.points
    if wanted * 2 > len(dataset.train):
        raise ConfigError(
            f"validation.points is {wanted}, the data has {len(dataset.train)} training points: "
            "lower it to less than half of them"
        )
    texts = dataset.train.contents
    if config.validation.group != "content":
        texts = point_texts(dataset.train, config.data.fields)
    train_rows, validation_rows = validation_split(
        dataset.train,
        texts,
        n=wanted,
        rng=Rng.from_seed(config.seed).numpy,
        group=config.validation.group,
    )
    if not len(validation_rows):
        raise ConfigError(
            f"validation.points is {wanted}, but no point can be set aside without leaving a label "
            "no training point or cutting a series in two: set validation.group to none, or give "
            "more points"
        )
    return Split(train_rows, validation_rows)


def tokenize(
    config: Config,
    dataset: Dataset,
    parts: Split,
    tokenizer_file: Path,
    complete: Callable[[TokenizedTexts], TokenizedTexts] = lambda texts: texts,
) -> TokenizedData:
    """Tokenize the parts with the tokenizer that will serve.

    `complete` may add to all points, or all labels, before they are split: a frozen transformer's
    pooled rows, which are then the same whatever the split.
    """
    tokenizer = Tokenizer(tokenizer_file, config.encoder.max_tokens)
    points = complete(tokenize_texts(tokenizer, point_texts(dataset.train, config.data.fields)))
    names = label_texts(dataset.labels, config.data.label_fields)
    labels = complete(tokenize_texts(tokenizer, names))
    return TokenizedData(
        train=points.take(parts.train_rows),
        validation=points.take(parts.validation_rows),
        labels=labels,
    )
