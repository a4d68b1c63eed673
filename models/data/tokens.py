"""Texts as token ids, split once and held flat, so that a training batch is a slice and a pad.

Splitting goes through service.core.tokenizer, the code that serves: training and serving cannot
differ in text cleaning, special tokens or truncation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.core.tokenizer import Tokenizer
from service.core.types import TokenBatch

_TEXTS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """Token ids of n texts end to end: text i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    n_truncated: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def batch(self, rows: NDArray[np.int64]) -> TokenBatch:
        """The texts of these rows, padded with zeros to the longest."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        columns = np.arange(int(lengths.max(initial=1)))
        mask = columns < lengths[:, None]
        # Positions past a text's end are clipped and then masked out, so nothing is read wrongly.
        positions = np.minimum(starts[:, None] + columns, len(self.ids) - 1)
        padded = np.where(mask, self.ids[positions], 0).astype(np.int64)
        return TokenBatch(padded, mask.astype(np.int64), np.zeros(len(rows), np.bool_))


def tokenize_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> TokenizedTexts:
    """Split all texts; special tokens are added, so none comes out empty."""
    parts: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
    lengths: list[int] = [0]
    n_truncated = 0
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        encodings = tokenizer.tokenize(texts[start : start + _TEXTS_AT_ONCE])
        lengths += [len(encoding.ids) for encoding in encodings]
        n_truncated += sum(bool(encoding.overflowing) for encoding in encodings)
        parts.append(np.concatenate([np.asarray(e.ids, np.int32) for e in encodings]))
    return TokenizedTexts(np.concatenate(parts), np.cumsum(lengths, dtype=np.int64), n_truncated)


def concatenate(first: TokenizedTexts, second: TokenizedTexts) -> TokenizedTexts:
    """The texts of both, in this order."""
    return TokenizedTexts(
        np.concatenate([first.ids, second.ids]),
        np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        first.n_truncated + second.n_truncated,
    )
