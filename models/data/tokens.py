"""Texts as token ids in one flat array, from which a training batch is cut and padded.

service.core.encoding.tokenizer makes the tokens in training and in serving, so that the two cannot
differ in text cleaning, special tokens or truncation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.core.encoding.field_tokenizer import AnyTokenizer, FieldTokenizer
from service.core.encoding.tokenizer import FieldTokens
from service.core.types import TokenBatch

_TEXTS_AT_ONCE = 8192  # a choice: it bounds the tokenizer's objects in memory


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """Token ids of n texts end to end: text i is `ids[offsets[i]:offsets[i + 1]]`.

    `pooled` (n, width) holds a frozen transformer's pooled rows of the texts, where there is one.
    `n_truncated` counts the texts that were too long. `marks` are the numbers of the tokens'
    fields, from 1; None where texts have one field.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    n_truncated: int
    pooled: NDArray[np.float16] | None = None
    marks: NDArray[np.int8] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def batch(self, rows: NDArray[np.int64]) -> TokenBatch:
        """The texts of these rows, padded with zeros to the length of the longest."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        columns = np.arange(int(lengths.max(initial=1)))
        mask = columns < lengths[:, None]
        # Clipping keeps the positions behind a text's end in range; the mask hides what they read.
        positions = np.minimum(starts[:, None] + columns, len(self.ids) - 1)
        padded = np.where(mask, self.ids[positions], 0).astype(np.int64)
        marks = mask if self.marks is None else np.where(mask, self.marks[positions], 0)
        return TokenBatch(padded, marks.astype(np.int64), np.zeros(len(rows), np.bool_))

    def batches_by_length(self, tokens: int) -> list[NDArray[np.int64]]:
        """All rows in batches of texts of similar length, so that there is little padding.

        A batch has at most `tokens` tokens with padding, or a single text.
        """
        lengths = np.diff(self.offsets)
        order = np.argsort(-lengths, kind="stable")
        batches = []
        start = 0
        while start < len(order):
            # A tokenizer without special tokens makes no token of an empty text.
            size = max(1, tokens // max(1, int(lengths[order[start]])))
            batches.append(order[start : start + size])
            start += size
        return batches

    def slice(self, part: slice) -> "TokenizedTexts":
        """The texts of a contiguous part; a part that is the whole copies nothing."""
        if part == slice(0, len(self)):
            return self
        return self.take(np.arange(len(self))[part])

    def take(self, rows: NDArray[np.int64]) -> "TokenizedTexts":
        """The texts of these rows, in this order; `n_truncated` stays that of all texts."""
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        shifts = np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        places = np.arange(offsets[-1]) + shifts
        pooled = None if self.pooled is None else self.pooled[rows]
        marks = None if self.marks is None else self.marks[places]
        return TokenizedTexts(self.ids[places], offsets, self.n_truncated, pooled, marks)


def tokenize_texts(tokenizer: AnyTokenizer, texts: Sequence[str]) -> TokenizedTexts:
    """Tokenize all texts, with the special tokens that the tokenizer adds."""
    parts: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
    lengths: list[int] = [0]
    marks = [np.empty(0, np.int8)]
    n_truncated = 0
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        encodings = tokenizer.tokenize(texts[start : start + _TEXTS_AT_ONCE])
        lengths += [len(encoding.ids) for encoding in encodings]
        n_truncated += sum(bool(encoding.overflowing) for encoding in encodings)
        parts.append(np.concatenate([np.asarray(e.ids, np.int32) for e in encodings]))
        marks += [np.asarray(e.marks, np.int8) for e in encodings if isinstance(e, FieldTokens)]
    return TokenizedTexts(
        np.concatenate(parts),
        np.cumsum(lengths, dtype=np.int64),
        n_truncated,
        marks=np.concatenate(marks) if isinstance(tokenizer, FieldTokenizer) else None,
    )


def concatenate(first: TokenizedTexts, second: TokenizedTexts) -> TokenizedTexts:
    """The texts of both, in this order. They have pooled rows where both have."""
    pooled = None
    if first.pooled is not None and second.pooled is not None:
        pooled = np.concatenate([first.pooled, second.pooled])
    marks = None
    if first.marks is not None and second.marks is not None:
        marks = np.concatenate([first.marks, second.marks])
    return TokenizedTexts(
        np.concatenate([first.ids, second.ids]),
        np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        first.n_truncated + second.n_truncated,
        pooled,
        marks,
    )
