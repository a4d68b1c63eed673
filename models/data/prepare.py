"""Prepares a data set for training: opens it, cuts the validation split and tokenizes the texts.

Every stage prepares its data here, so that all have the same split and the same tokens.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.config import AUTO, Config, EncoderConfig, load_config
from models.data.dataset import Dataset, Points, has_text, label_texts, point_texts
from models.data.earlier import trained_on
from models.data.filters import (
    check_item_ids,
    filtered_pairs,
    with_own_items,
    without_cells,
)
from models.data.formats import text_file
from models.data.splits import Grouping, joint_groups, validation_split
from models.data.tables.table import open_data
from models.data.tokens import TokenizedTexts, concatenate, tokenize_texts
from models.errors import ConfigError, DataError
from models.rng import Rng
from models.runs import TOKENIZER_FILE, Run
from service.core.encoding.field_tokenizer import AnyTokenizer, open_tokenizer

CALIBRATION_DEPTH = 50
"""Labels of an answer that the calibration is fitted on. A choice: five times the default k."""

LEAST_VALIDATION_POINTS = 2
"""The calibration is measured on each half of them, fitted on the other."""

Role: TypeAlias = Literal["query", "label"]
"""What a text is to the encoder."""


@dataclass(frozen=True, slots=True)
class Split:
    """Rows (n,) of the data set's training points: those to train on, and those to choose by.

    `held_rows` are held out of the training of a fold, to be scored by its model.
    """

    train_rows: NDArray[np.int64]
    validation_rows: NDArray[np.int64]
    held_rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the validation rows, which identifies the split."""
        return hashlib.sha256(self.validation_rows.astype("<i8").tobytes()).hexdigest()


def load_config_with_data(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration and check that its data folder exists. Raises ConfigError.

    The error about a missing folder repeats what the file's first comment says after `Data:`.
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
    """The text after `Data:` in the file's first comment, where it names the folder; else empty."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    head = [line.strip("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]
    advice = " ".join(head).partition("Data: ")[2]
    return advice if folder in advice else ""


def open_configured(config: Config) -> Dataset:
    """Open the data set of a configuration; `data.own_item` adds filters.

    Raises DataError, also where a stage could do nothing with the points of a part.
    """
    folder = Path(config.data.path)
    dataset = open_data(config.data)
    if config.data.own_item:
        dataset = with_own_items(dataset)
    check_item_ids(dataset, folder)
    _check_points(config, "trn", "training points", dataset.train)
    if dataset.test is not None:
        _check_points(config, "tst", "test points", dataset.test)
    return dataset


def split(config: Config, dataset: Dataset) -> Split:
    """Cut the validation split. The same configuration and data give the same split.

    Points that `train.start_from` was trained on stay in training.

    Raises DataError where a filter leaves the validation points no label, and ConfigError where
    `validation.points` is too large or too few points can leave training.
    """
    n_points = config.validation.points
    if n_points * 2 > len(dataset.train):
        raise ConfigError(
            f"validation.points is {n_points}, the data has {len(dataset.train)} training points: "
            "lower it to less than half of them"
        )
    whole = point_texts(dataset.train, config.data.fields)
    texts = dataset.train.contents if config.validation.group == "content" else whole
    train_rows, validation_rows = validation_split(
        dataset.train,
        texts,
        n=n_points,
        rng=Rng.from_seed(config.seed).numpy,
        group=config.validation.group,
        known=trained_on(config, whole) if config.train.start_from else None,
    )
    if len(validation_rows) < LEAST_VALIDATION_POINTS:
        raise ConfigError(
            f"validation.points is {n_points}, but {len(validation_rows) or 'no'} point can be set "
            "aside without taking a label's last training point or cutting a series in two: "
            + ("" if config.validation.group == "none" else "set validation.group to none, or ")
            + "give more points of each label"
        )
    _check_validation_filter(config, dataset, validation_rows)
    return Split(train_rows, validation_rows)


def point_groups(config: Config, points: Points) -> NDArray[np.int64]:
    """The group (n,) of each point by `validation.group`, such as its series, from 0."""
    return joint_groups(config.validation.group, config.data.fields, points)[0]


def grouping_of(config: Config) -> Grouping:
    """How points are said to be of one work: as for the validation split, or else by series."""
    return "series" if config.validation.group == "none" else config.validation.group


def _check_points(config: Config, part: str, what: str, points: Points) -> None:
    """Raise DataError unless some point has a label and a text that can be seen."""
    path = text_file(Path(config.data.path), part)
    labelled = np.flatnonzero(np.diff(points.labels.indptr))
    if not len(labelled):
        raise DataError(path, None, f"{what} of which some have labels", "none that has one")
    texts = point_texts(points, config.data.fields)
    if not any(has_text(texts[row]) for row in labelled):
        expected = f"{what} of which some with labels have a text under {config.data.fields}"
        raise DataError(path, None, expected, "none that has one")


def _check_validation_filter(config: Config, dataset: Dataset, rows: NDArray[np.int64]) -> None:
    """Raise DataError where the filter may leave nothing to choose by or to calibrate on.

    A point can be scored if it keeps a label, and calibrated on if an answer of it keeps one.
    Each half of the points that can be needs one.
    """
    labels = dataset.train.labels
    filtered = filtered_pairs(dataset.train_filter, *labels.shape)[rows]
    depth = min(CALIBRATION_DEPTH, labels.shape[1])
    kept = np.diff(without_cells(labels[rows], filtered).indptr) > 0
    n_good = int((kept & (np.diff(filtered.indptr) < depth)).sum())
    if n_good < LEAST_VALIDATION_POINTS:
        found = f"a label and an answer without filter pairs for {n_good} of {len(rows)}"
        expected = "a filter of training points that leaves labels to choose by"
        raise DataError(Path(config.data.path), None, expected, found)


def prefix_of(config: EncoderConfig, role: Role) -> str:
    """What the encoder reads before the text of a query, or of a label."""
    prefix = config.query_prefix if role == "query" else config.label_prefix
    # `models.encoders.usage` resolves `auto` before a run begins; older runs had no prefixes.
    return "" if prefix == AUTO else prefix


def tokenizer_of(run: Run, role: Role) -> AnyTokenizer:
    """The run's tokenizer for queries, or for labels. Raises RunError, ManifestInvalid."""
    path, config = run.require(TOKENIZER_FILE, "train"), run.config.encoder
    return open_tokenizer(path, config.limits, prefix_of(config, role))


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
    def held(self) -> TokenizedTexts:
        """The points that a fold's model scores."""
        return self._points(self._parts.held_rows)

    @cached_property
    def labels(self) -> TokenizedTexts:
        """The labels."""
        fields = self._run.config.data.label_fields
        return self._tokenize(label_texts(self._dataset.labels, fields), "label")

    @property
    def points(self) -> TokenizedTexts:
        """The points of all parts in the data's order, which is the same whatever the split."""
        parts = self._parts
        rows = np.concatenate([parts.train_rows, parts.validation_rows, parts.held_rows])
        texts = concatenate(concatenate(self.train, self.validation), self.held)
        return texts.take(np.argsort(rows))

    def drop(self, *parts: str) -> None:
        """Free the memory of these parts; whoever reads one again has it tokenised again."""
        for part in parts:
            self.__dict__.pop(part, None)

    def _points(self, rows: NDArray[np.int64]) -> TokenizedTexts:
        points = self._dataset.train.take(rows)
        return self._tokenize(point_texts(points, self._run.config.data.fields), "query")

    def _tokenize(self, texts: list[str], role: Role) -> TokenizedTexts:
        return tokenize_texts(tokenizer_of(self._run, role), texts)
