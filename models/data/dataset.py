"""A data set in memory: points, a label catalogue, and the report on both.

A point's labels are one row of a sparse matrix. Points without labels and with blank titles are
legal: the report counts them and training skips them. formats.py reads and writes the files. This
module joins texts and never cleans them: service.core.encoding.text does, the same for training and
serving.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.config import Fields
from service.core.encoding.text import join_fields


@dataclass(frozen=True, slots=True)
class LabelCatalogue:
    """The labels in the order of their rows; `uids` are the unique ids that a client sees."""

    uids: list[str]
    titles: list[str]
    contents: list[str]
    metadata: list[dict[str, Any]] | None = None
    """What a table says of each label beside its text, as JSON values; None where there is none."""

    def __post_init__(self) -> None:
        _check_lengths("labels", self.uids, self.titles, self.contents)

    def __len__(self) -> int:
        return len(self.uids)


@dataclass(frozen=True, slots=True)
class Points:
    """Texts with their labels: row i of `labels` (n_points, n_labels) float32 belongs to text i.

    A stored value is 1.0, or the relevance where the source gives one. An empty uid is none.
    `merged_targets` counts how often a source repeated a label within one row; the reader merges
    repeats and keeps the larger relevance. Raises ValueError where the lengths differ.
    """

    uids: list[str]
    titles: list[str]
    contents: list[str]
    labels: csr_array
    merged_targets: int = 0

    def __post_init__(self) -> None:
        _check_lengths("points", self.uids, self.titles, self.contents)
        if self.labels.shape[0] != len(self.uids):
            raise ValueError(
                f"labels has {self.labels.shape[0]} rows for {len(self.uids)} points; "
                "give one row per point"
            )

    def __len__(self) -> int:
        return len(self.uids)

    def take(self, rows: Sequence[int] | NDArray[np.integer]) -> Self:
        """The points of these rows, in this order; their `merged_targets` is 0."""
        indices = np.asarray(rows, dtype=np.int64)
        return type(self)(
            uids=[self.uids[row] for row in indices],
            titles=[self.titles[row] for row in indices],
            contents=[self.contents[row] for row in indices],
            labels=self.labels[indices],
        )


@dataclass(frozen=True, slots=True)
class Dataset:
    """A named data set; a filter is an (m, 2) int64 array of (row, label) pairs, or None.

    Evaluation leaves the filter pairs out of predictions: items name each other, and the published
    test labels of such data lack those pairs. `sha256` covers the bytes of the source files. Raises
    ValueError where points and catalogue have different numbers of labels.
    """

    name: str
    train: Points
    test: Points | None
    labels: LabelCatalogue
    train_filter: NDArray[np.int64] | None
    test_filter: NDArray[np.int64] | None
    sha256: str

    def __post_init__(self) -> None:
        for part, points in (("train", self.train), ("test", self.test)):
            if points is not None and points.labels.shape[1] != len(self.labels):
                raise ValueError(
                    f"{part} points have {points.labels.shape[1]} label columns and the catalogue "
                    f"has {len(self.labels)} labels; they must be the same labels"
                )


def point_texts(points: Points, fields: Fields) -> list[str]:
    """The text of every point that the encoder reads."""
    return _join_fields(points.titles, points.contents, fields)


def label_texts(labels: LabelCatalogue, fields: Fields) -> list[str]:
    """The text of every label, for encoders that read labels too."""
    return _join_fields(labels.titles, labels.contents, fields)


def has_text(text: str) -> bool:
    """Whether a reader sees something: a character that is neither blank nor for control.

    >>> has_text("whale"), has_text(" \u00ad\u200b")
    (True, False)
    """
    return any(char.isprintable() and char != " " for char in text)


def _join_fields(titles: list[str], contents: list[str], fields: Fields) -> list[str]:
    if fields == "title":
        return list(titles)
    if fields == "title+content":
        return [
            f"{title} {content}" if title and content else title or content
            for title, content in zip(titles, contents, strict=True)
        ]
    if fields == "title|content":
        return [join_fields(pair) for pair in zip(titles, contents, strict=True)]
    raise ValueError(f'fields is {fields!r}; use "title", "title+content" or "title|content"')


def _check_lengths(what: str, uids: list[str], titles: list[str], contents: list[str]) -> None:
    if not len(uids) == len(titles) == len(contents):
        raise ValueError(
            f"{what} have {len(uids)} uids, {len(titles)} titles and {len(contents)} contents; "
            "give one of each per row"
        )


def report(dataset: Dataset, fields: Fields) -> dict[str, Any]:
    """Counts to look at before training, by name: sizes, gaps and duplicates, as JSON types.

    Two texts are equal if the encoder reads the same text; duplicates are the copies after the
    first. Points per label are training points, over all labels. `train` and `test` hold the counts
    of these points; `test` is None where there are none.
    """
    train_texts = point_texts(dataset.train, fields)
    test_texts = point_texts(dataset.test, fields) if dataset.test is not None else []
    names = label_texts(dataset.labels, fields)
    per_label = np.bincount(dataset.train.labels.indices, minlength=len(dataset.labels))
    distinct_train_texts = {text for text in train_texts if has_text(text)}
    return {
        "name": dataset.name,
        "sha256": dataset.sha256,
        "fields": fields,
        "train": _report_points(dataset.train, train_texts),
        "test": _report_points(dataset.test, test_texts) if dataset.test is not None else None,
        "test_texts_in_train": sum(text in distinct_train_texts for text in test_texts),
        "n_labels": len(dataset.labels),
        "points_per_label_mean": _mean(per_label),
        "points_per_label_median": float(np.median(per_label)) if per_label.size else 0.0,
        "points_per_label_max": int(per_label.max(initial=0)),
        "labels_without_points": int((per_label == 0).sum()),
        "labels_without_text": _count_blank(names),
        "duplicate_label_texts": _count_duplicates(names),
        "train_filter_pairs": 0 if dataset.train_filter is None else len(dataset.train_filter),
        "test_filter_pairs": 0 if dataset.test_filter is None else len(dataset.test_filter),
    }


def _report_points(points: Points, texts: list[str]) -> dict[str, Any]:
    per_point = np.diff(points.labels.indptr)
    return {
        "n_points": len(points),
        "labels_per_point_mean": _mean(per_point),
        "labels_per_point_min": int(per_point.min()) if per_point.size else 0,
        "labels_per_point_max": int(per_point.max(initial=0)),
        "points_without_labels": int((per_point == 0).sum()),
        "points_without_text": _count_blank(texts),
        "duplicate_texts": _count_duplicates(texts),
        "duplicate_uids": _count_duplicates(points.uids),
        "merged_targets": points.merged_targets,
    }


def report_text(dataset: Dataset, fields: Fields) -> str:
    """The report for a terminal, one count a line, with the values in one column."""
    lines: list[tuple[str, object]] = []
    for key, value in report(dataset, fields).items():
        if isinstance(value, dict):
            lines += [(f"{key} {name}", count) for name, count in value.items()]
        elif value is not None:
            lines.append((key, value))
    width = max(len(name) for name, _ in lines)
    return "\n".join(
        f"{name.replace('_', ' '):<{width}}  {_format(value)}" for name, value in lines
    )


def _mean(counts: NDArray[np.integer]) -> float:
    return float(counts.mean()) if counts.size else 0.0


def _count_blank(texts: list[str]) -> int:
    return sum(not has_text(text) for text in texts)


def _count_duplicates(texts: list[str]) -> int:
    """The number of copies after the first, without blank texts (see `_count_blank`)."""
    texts = [text for text in texts if has_text(text)]
    return len(texts) - len(set(texts))


def _format(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
