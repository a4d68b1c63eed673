"""Sets points aside for validation so that near-copies never sit on both sides.

Volumes of one work differ by a number; with one in training and one in validation, the score
measures memory. So points are grouped by a series key and whole groups move. Items that come from
one source, such as packages, have names of their own but contents that open alike. No test points
are made here: a published test split stays as it is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from models.data.dataset import Points

Grouping = Literal["series", "content", "none"]
Rows = NDArray[np.int64]

# "part", "book" and "no" are ordinary words ("The Book of Tea") unless a number follows.
_SERIES_END = re.compile(
    r"[:;–—―]|--|\s-\s|\bvol(?:ume)?s?\b"
    r"|\b(?:parts?|books?|no|nos|number)\b\.?\s*(?:the\s+)?"
    r"(?:\d|[ivxlc]+\b|(?:one|two|three|four|five|six|seven|eight|nine|ten)\b"
    r"|(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth)\b)",
    re.IGNORECASE,
)
_NOT_LETTERS = re.compile(r"[\W\d_]+")
_OPENING_CHARS = 60
_SOURCES_AT_LEAST = 50
"""One source can hold hundreds of items that are right or wrong together."""


def series_key(text: str) -> str:
    """The part of a title that the volumes of a work share; empty where nothing is left.

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
    """How a content begins; empty where that has no letters.

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
) -> tuple[Rows, Rows]:
    """(training rows, validation rows), both ascending, together every row once.

    `texts` are what points are grouped by: titles for `series`, contents for `content`. Draws whole
    groups until `n` points are set aside; never more, and fewer where groups run out; of contents,
    no group of over a fiftieth of them. A group with a point that has no label stays in training.
    Groups that would take a label's last training point stay there too, and those that did take it
    together go back: the count then falls a little short.
    """
    if not 0 < n < len(points):
        raise ValueError(f"n is {n}; give at least 1 and fewer than the {len(points)} points")
    if len(texts) != len(points):
        raise ValueError(f"{len(texts)} texts for {len(points)} points; give one per point")
    group_rows = _group_rows(texts, group)
    n_groups = int(group_rows.max(initial=-1)) + 1
    movable = np.ones(n_groups, dtype=bool)
    movable[group_rows[np.diff(points.labels.indptr) == 0]] = False
    sizes = np.bincount(group_rows, minlength=n_groups)
    if group == "content":
        movable[sizes > max(1, n // _SOURCES_AT_LEAST)] = False
    holders = _Holders.of(points, group_rows)
    movable[holders.sole_groups()] = False
    order = rng.permutation(n_groups)
    drawn = _draw(order[movable[order]], sizes, n)
    drawn[holders.groups_to_return(drawn)] = False
    in_validation = drawn[group_rows]
    return np.flatnonzero(~in_validation), np.flatnonzero(in_validation)


def _group_rows(texts: Sequence[str], group: Grouping) -> Rows:
    """A group number for every row, counted from 0 in order of appearance."""
    if group == "none":
        return np.arange(len(texts), dtype=np.int64)
    if group not in _KEYS:
        raise ValueError(f'group is {group!r}; use "series", "content" or "none"')
    numbers: dict[str | int, int] = {}
    # Where the key is empty ("1984"), only the same text shares a group; blank texts share none.
    keys = ((_KEYS[group](text) or f"={text.strip()}", row) for row, text in enumerate(texts))
    return np.array(
        [numbers.setdefault(row if key == "=" else key, len(numbers)) for key, row in keys],
        dtype=np.int64,
    )


_KEYS: Final = {"series": series_key, "content": opening_key}


def _draw(order: Rows, sizes: Rows, wanted: int) -> NDArray[np.bool_]:
    """Takes groups in this order, skipping those that would go past what is wanted."""
    drawn = np.zeros(len(sizes), dtype=bool)
    for group in order:
        if wanted == 0:
            break
        if sizes[group] <= wanted:
            drawn[group] = True
            wanted -= sizes[group]
    return drawn


@dataclass(frozen=True, slots=True)
class _Holders:
    """Which groups have a point with which label, each pair once."""

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
        """Groups that are alone in having some label: these can never leave training."""
        n_groups = np.bincount(self.labels, minlength=self.n_labels)
        return self.groups[n_groups[self.labels] == 1]

    def groups_to_return(self, drawn: NDArray[np.bool_]) -> Rows:
        """One drawn group for every label that the draw has left without a training point."""
        left = np.bincount(self.labels[~drawn[self.groups]], minlength=self.n_labels)
        bare = np.flatnonzero(left[self.labels] == 0)
        _, first = np.unique(self.labels[bare], return_index=True)
        return self.groups[bare[first]]
