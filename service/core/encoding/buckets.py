"""Buckets: the few shapes that a GPU is given, so that buffers, plans and graphs are made once.

A batch is padded up to the next bucket in both directions, powers of two, and its padding is cut
off the result again. More rows than the largest bucket has go in several runs. Pure functions of
shapes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from service.core.types import Int64Rows

LEAST_LENGTH: Final = 8


class Bucket(NamedTuple):
    """A shape that inputs are padded to."""

    rows: int
    length: int


@dataclass(frozen=True, slots=True)
class Buckets:
    """Every shape there is: each number of rows with each length, both rising."""

    rows: tuple[int, ...]
    lengths: tuple[int, ...]

    def __iter__(self) -> Iterator[Bucket]:
        return (Bucket(rows, length) for rows in self.rows for length in self.lengths)

    def __len__(self) -> int:
        return len(self.rows) * len(self.lengths)

    @property
    def largest(self) -> Bucket:
        """The shape that all others fit into."""
        return Bucket(self.rows[-1], self.lengths[-1])

    def fitting(self, rows: int, length: int) -> Bucket:
        """The smallest bucket that holds a batch; raises ValueError where none does."""
        if not (0 < rows <= self.rows[-1] and length <= self.lengths[-1]):
            raise ValueError(f"a batch of {rows} x {length} fits no bucket of {self.largest}")
        return Bucket(
            next(size for size in self.rows if size >= rows),
            next(size for size in self.lengths if size >= length),
        )

    def runs(self, rows: int) -> Iterator[slice]:
        """Rows of a batch, in parts that a bucket holds.

        >>> list(Buckets((1, 2, 4), (8,)).runs(6))
        [slice(0, 4, None), slice(4, 6, None)]
        """
        for start in range(0, rows, self.rows[-1]):
            yield slice(start, min(start + self.rows[-1], rows))


def powers_of_two(max_rows: int, max_tokens: int) -> Buckets:
    """Buckets for up to `max_rows` rows at once of up to `max_tokens` tokens.

    >>> powers_of_two(5, 20)
    Buckets(rows=(1, 2, 4, 5), lengths=(8, 16, 20))
    """
    return Buckets(_sizes(1, max_rows), _sizes(LEAST_LENGTH, max_tokens))


def fill(ids: Int64Rows, mask: Int64Rows, into_ids: Int64Rows, into_mask: Int64Rows) -> None:
    """Copy a batch into the corner of a bucket's arrays and pad the rest.

    A row of padding has one real token (0), so that no mean is taken over nothing.
    """
    rows, length = ids.shape
    into_ids[:] = 0
    into_mask[:] = 0
    into_ids[:rows, :length] = ids
    into_mask[:rows, :length] = mask
    into_mask[rows:, 0] = 1


def empty_inputs(bucket: Bucket) -> tuple[Int64Rows, Int64Rows]:
    """Token ids and mask of a bucket, to be filled again and again."""
    return np.zeros(bucket, np.int64), np.zeros(bucket, np.int64)


def _sizes(least: int, most: int) -> tuple[int, ...]:
    sizes = []
    size = least
    while size < most:
        sizes.append(size)
        size *= 2
    return (*sizes, most)
