"""From a data folder to what a method trains on: split, tokenized, counted.

Every stage comes through here, so all of them see the same split and the same tokens.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.config import Config, load_config
from models.data.dataset import Dataset, label_texts, point_texts
from models.data.filters import check_item_ids, with_own_items
from models.data.formats import open_dataset
from models.data.splits import validation_split
from models.data.tokens import TokenizedTexts, concatenate, tokenize_texts
from models.errors import ConfigError, DataError
from models.rng import Rng
from models.runs import TOKENIZER_FILE, Run
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


class Corpus:
    """The texts of a run as token ids, by the tokenizer that will serve.

    Each part is tokenised when it is first read, and stays until it is dropped: a stage drops what
    no later one reads. Reading raises RunError where the run has no tokenizer yet.
    """

    def __init__(self, run: Run, dataset: Dataset, parts: Split) -> None:
        self._run, self._dataset, self._parts = run, dataset, parts

    @cached_property
    def train(self) -> TokenizedTexts:
        """The points that are trained on."""
        return self._points(self._parts.train_rows)

    @cached_property
    def validation(self) -> TokenizedTexts:
        """The points that everything is chosen on."""
        return self._points(self._parts.validation_rows)

    @cached_property
    def labels(self) -> TokenizedTexts:
        """The labels."""
        fields = self._run.config.data.label_fields
        return self._tokenize(label_texts(self._dataset.labels, fields))

    @property
    def points(self) -> TokenizedTexts:
        """The points of both parts in the data's order, which is the same whatever the split."""
        rows = np.concatenate([self._parts.train_rows, self._parts.validation_rows])
        return concatenate(self.train, self.validation).take(np.argsort(rows))

    def drop(self, *parts: str) -> None:
        """Free the memory of these parts; whoever reads one again has it tokenised again."""
        for part in parts:
            self.__dict__.pop(part, None)

    def _points(self, rows: NDArray[np.int64]) -> TokenizedTexts:
        points = self._dataset.train.take(rows)
        return self._tokenize(point_texts(points, self._run.config.data.fields))

    def _tokenize(self, texts: list[str]) -> TokenizedTexts:
        tokenizer_file = self._run.require(TOKENIZER_FILE, "train")
        return tokenize_texts(Tokenizer(tokenizer_file, self._run.config.encoder.max_tokens), texts)
