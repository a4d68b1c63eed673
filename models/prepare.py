"""From a data folder to what a method trains on: split, tokenized, counted.

Every stage comes through here, so all of them see the same split and the same tokens.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.config import Config
from models.data.dataset import Dataset, label_texts, point_texts
from models.data.splits import validation_split
from models.data.tokens import TokenizedTexts, tokenize_texts
from models.errors import ConfigError
from models.rng import Rng
from service.core.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Split:
    """Rows of the training points that are trained on, and those that everything is chosen on."""

    train_rows: NDArray[np.int64]
    validation_rows: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenizedData:
    """Training points, validation points and labels as token ids."""

    train: TokenizedTexts
    validation: TokenizedTexts
    labels: TokenizedTexts


def split(config: Config, dataset: Dataset) -> Split:
    """Cut the validation split; the same for the same config and data. Raises ConfigError."""
    wanted = config.validation.points
    if wanted * 2 > len(dataset.train):
        raise ConfigError(
            f"validation.points is {wanted}, the data has {len(dataset.train)} training points: "
            "lower it to less than half of them"
        )
    texts = point_texts(dataset.train, config.data.fields)
    train_rows, validation_rows = validation_split(
        dataset.train,
        texts,
        n=wanted,
        rng=Rng.from_seed(config.seed).numpy,
        group=config.validation.group,
    )
    return Split(train_rows, validation_rows)


def tokenize(config: Config, dataset: Dataset, parts: Split, tokenizer_file: Path) -> TokenizedData:
    """Tokenize the parts with the tokenizer that will serve."""
    tokenizer = Tokenizer(tokenizer_file, config.encoder.max_tokens)
    texts = point_texts(dataset.train, config.data.fields)
    return TokenizedData(
        train=tokenize_texts(tokenizer, [texts[row] for row in parts.train_rows]),
        validation=tokenize_texts(tokenizer, [texts[row] for row in parts.validation_rows]),
        labels=tokenize_texts(tokenizer, label_texts(dataset.labels, config.data.label_fields)),
    )
