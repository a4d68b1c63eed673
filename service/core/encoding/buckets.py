"""Buckets: the few shapes of batches on a GPU. Each needs its buffers, plan and graph only once.

A batch is padded to the next bucket in rows and in tokens, both powers of two; the result loses the
padding again. A batch with more rows than the largest bucket goes in several runs. All functions
are pure (docs/decisions/0019).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from service.core.types import Int64Rows

LEAST_LENGTH: Final = 8
"""Tokens of the shortest bucket. A choice: shorter buckets would save little and need warming."""


class Bucket(NamedTuple):
    """One shape of inputs: rows by tokens."""

    rows: int
    length: int


@dataclass(frozen=True, slots=True)
class Buckets:
    """All buckets: every number of rows with every length; both rise."""

    rows: tuple[int, ...]
    lengths: tuple[int, ...]

    def __iter__(self) -> Iterator[Bucket]:
        return (Bucket(rows, length) for rows in self.rows for length in self.lengths)

    def __len__(self) -> int:
        return len(self.rows) * len(self.lengths)

    @property
    def largest(self) -> Bucket:
        """The bucket that all others fit into."""
        return Bucket(self.rows[-1], self.lengths[-1])

    def fitting(self, rows: int, length: int) -> Bucket:
        """The smallest bucket that holds a batch of this shape; raises ValueError if none does."""
        if not (0 < rows <= self.rows[-1] and length <= self.lengths[-1]):
            raise ValueError(f"a batch of {rows} x {length} fits no bucket of {self.largest}")
        return Bucket(
            next(size for size in self.rows if size >= rows),
            next(size for size in self.lengths if size >= length),
        )

    def runs(self, rows: int) -> Iterator[slice]:
        """Split a batch of `rows` rows into parts that fit a bucket.

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
    """Copy a batch (n, length) into a bucket's arrays and pad the rest.

    A padding row has one real token (0), so that an encoder takes no mean over zero tokens.
    """
    rows, length = ids.shape
    into_ids[:] = 0
    into_mask[:] = 0
    into_ids[:rows, :length] = ids
    into_mask[:rows, :length] = mask
    into_mask[rows:, 0] = 1


def empty_inputs(bucket: Bucket) -> tuple[Int64Rows, Int64Rows]:
    """Zeroed token ids and mask in the shape of a bucket."""
    return np.zeros(bucket, np.int64), np.zeros(bucket, np.int64)


def _sizes(least: int, most: int) -> tuple[int, ...]:
    sizes = []
    size = least
    while size < most:
        sizes.append(size)
        size *= 2
    return (*sizes, most)
