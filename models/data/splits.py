"""Cuts the validation split so that training and validation share no near-copies.

Volumes of one work differ by a number. With one volume in training and another in validation, a
score would measure memory. So whole groups of points with the same key go to one side. The key is
the start of the title for volumes of a series. Items of one source, such as packages, have
different names but contents that begin alike, so there the key is the start of the content. A
published test split stays as it is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from models.config import Fields
from models.data.dataset import Points, point_texts
from service.core.encoding.text import split_fields

Grouping = Literal["series", "content", "none"]
Rows = NDArray[np.int64]

# "part", "book" and "no" end a series title only before a number ("The Book of Tea" has none).
_SERIES_END = re.compile(
    r"[:;–—―]|--|\s-\s|\bvol(?:ume)?s?\b"
    r"|\b(?:parts?|books?|no|nos|number)\b\.?\s*(?:the\s+)?"
    r"(?:\d|[ivxlc]+\b|(?:one|two|three|four|five|six|seven|eight|nine|ten)\b"
    r"|(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth)\b)",
    re.IGNORECASE,
)
_NOT_LETTERS = re.compile(r"[\W\d_]+")
_OPENING_CHARS = 60  # a choice: about ten words, as many as packages of one source share
_MIN_SOURCES = 50
"""Groups by content that validation has at least, where there are as many (a choice).

One source can have hundreds of items, which a model gets right or wrong together."""

_FEWEST: Final = 2
"""Where a draw leaves fewer validation points, as in a table of a few rows, groups are drawn one by
one. Calibration needs as many."""


def series_key(text: str) -> str:
    """The part of a title that all volumes of a work share; empty where that has no letters.

    >>> series_key("Critical Miscellanies, (Vol. 3 of 3), Essay 2: The Death of Mr Mill")
    'critical miscellanies'
    >>> series_key("The Book of Tea")
    'the book of tea'
    >>> series_key("1984")
    ''
    """
    start = _SERIES_END.split(text, maxsplit=1)[0]
    return _NOT_LETTERS.sub(" ", start).strip().casefold()


def opening_key(text: str) -> str:
    """The start of a content, without digits and punctuation; empty where it has no letters.

    >>> opening_key("GNU R is a system.  This package holds its manuals, as HTML and text.")
    'gnu r is a system this package holds its manuals as html'
    """
    return _NOT_LETTERS.sub(" ", text[:_OPENING_CHARS]).strip().casefold()


def validation_split(
    points: Points,
    texts: Sequence[str],
    rng: np.random.Generator,
    *,
    n: int,
    group: Grouping = "series",
    known: NDArray[np.bool_] | None = None,
) -> tuple[Rows, Rows]:
    """Split the rows of `points` into (training rows, validation rows), both ascending.

    `texts` (one a point) make the groups: titles for `series`, contents for `content`. The function
    draws whole groups at random until validation has `n` points. It never takes more, and fewer
    where no more groups fit. These groups stay in training:

    - a group with a point that has no label, or with a `known` one (n,);
    - with group "content", one of more than a fiftieth of the validation points;
    - one that has the only points of a label. Where several groups together would take all points
      of a label, one of them goes back to training.

    Raises ValueError where the arguments do not fit together.
    """
    if not 0 < n < len(points):
        raise ValueError(f"n is {n}; give at least 1 and fewer than the {len(points)} points")
    if len(texts) != len(points):
        raise ValueError(f"{len(texts)} texts for {len(points)} points; give one per point")
    group_rows = group_numbers(texts, group)
    n_groups = int(group_rows.max(initial=-1)) + 1
    movable = np.ones(n_groups, dtype=bool)
    movable[group_rows[np.diff(points.labels.indptr) == 0]] = False
    if known is not None:
        movable[group_rows[known]] = False
    sizes = np.bincount(group_rows, minlength=n_groups)
    if group == "content":
        movable[sizes > max(1, n // _MIN_SOURCES)] = False
    holders = _Holders.of(points, group_rows)
    movable[holders.sole_groups()] = False
    order = rng.permutation(n_groups)
    drawn = _draw(order[movable[order]], sizes, n)
    drawn[holders.groups_to_return(drawn)] = False
    if sizes[drawn].sum() < min(n, _FEWEST):
        drawn = holders.draw_singly(order[movable[order]], sizes, n)
    in_validation = drawn[group_rows]
    return np.flatnonzero(~in_validation), np.flatnonzero(in_validation)


def joint_groups(grouping: Grouping, fields: Fields, *parts: Points) -> list[Rows]:
    """The group (n,) of each point of several parts; a number means one group in all of them."""
    texts = [
        part.contents if grouping == "content" else point_texts(part, fields) for part in parts
    ]
    numbers = group_numbers([text for some in texts for text in some], grouping)
    return np.split(numbers, np.cumsum([len(part) for part in parts])[:-1])


def group_numbers(texts: Sequence[str], group: Grouping) -> Rows:
    """The group number (n,) of every text, from 0 in order of appearance.

    Raises ValueError for a grouping that is none.
    """
    if group == "none":
        return np.arange(len(texts), dtype=np.int64)
    if group not in _KEYS:
        raise ValueError(f'group is {group!r}; use "series", "content" or "none"')
    if group == "series":
        texts = [split_fields(text, 2)[0] for text in texts]  # the title, if it is a view
    numbers: dict[str | int, int] = {}
    # Where the key is empty ("1984"), only equal texts share a group. Blank texts share no group.
    keys = ((_KEYS[group](text) or f"={text.strip()}", row) for row, text in enumerate(texts))
    return np.array(
        [numbers.setdefault(row if key == "=" else key, len(numbers)) for key, row in keys],
        dtype=np.int64,
    )


_KEYS: Final = {"series": series_key, "content": opening_key}


def _draw(order: Rows, sizes: Rows, target: int) -> NDArray[np.bool_]:
    """Take groups in this order until they have `target` points; skip groups that are too large."""
    drawn = np.zeros(len(sizes), dtype=bool)
    remaining = target
    for group in order:
        if remaining == 0:
            break
        if sizes[group] <= remaining:
            drawn[group] = True
            remaining -= sizes[group]
    return drawn


@dataclass(frozen=True, slots=True)
class _Holders:
    """All pairs of a group and a label that a point of the group has, each pair once."""

    groups: Rows
    labels: Rows
    n_labels: int

    @classmethod
    def of(cls, points: Points, group_rows: Rows) -> Self:
        n_labels = max(points.labels.shape[1], 1)
        rows = np.repeat(np.arange(len(points)), np.diff(points.labels.indptr))
        pairs = np.unique(group_rows[rows] * n_labels + points.labels.indices)
        return cls(pairs // n_labels, pairs % n_labels, n_labels)

    def sole_groups(self) -> Rows:
        """The groups that have all points of some label; they can never leave training."""
        n_groups = np.bincount(self.labels, minlength=self.n_labels)
        return self.groups[n_groups[self.labels] == 1]

    def draw_singly(self, order: Rows, sizes: Rows, target: int) -> NDArray[np.bool_]:
        """Take groups in this order, but none that would take all that is left of a label."""
        left = np.bincount(self.labels, minlength=self.n_labels)
        drawn = np.zeros(len(sizes), dtype=bool)
        remaining = target
        for group in order:
            labels = self.labels[self.groups == group]
            if sizes[group] <= remaining and (left[labels] > 1).all():
                drawn[group] = True
                remaining -= sizes[group]
                left[labels] -= 1
        return drawn

    def groups_to_return(self, drawn: NDArray[np.bool_]) -> Rows:
        """For every label without a training point after the draw, one group that has the label."""
        n_training = np.bincount(self.labels[~drawn[self.groups]], minlength=self.n_labels)
        bare = np.flatnonzero(n_training[self.labels] == 0)
        _, first = np.unique(self.labels[bare], return_index=True)
        return self.groups[bare[first]]
