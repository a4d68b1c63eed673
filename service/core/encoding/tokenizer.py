"""Turns texts into padded batches of token ids.

Truncation keeps the beginning of a text, and a batch marks every text that was cut. `pad` pads a
batch to its longest text. To keep padding small, the caller first splits its texts with
`length_sorted_chunks`, because only the caller knows the token budget.
"""

import os
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeAlias

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as FastTokenizer

from service.bundle.plain_files import read_plain
from service.core.encoding.text import normalise
from service.core.types import TokenBatch
from service.errors import ManifestInvalid

MAX_FILE_BYTES: Final = 64 << 20
"""A choice: four times a vocabulary of 250,000 tokens."""


class Tokenizer:
    """A `tokenizer.json`; it adds special tokens and cuts texts at `max_tokens`.

    It puts `prefix` before each text, as the encoder expects. Prefix and special tokens of a text
    are `n_around` tokens. Threads may share it.
    """

    def __init__(self, path: Path, max_tokens: int, prefix: str = "") -> None:
        """Open the file; raises ManifestInvalid, FileMissing, FileCorrupt."""
        # The lanes are the parallelism; the library's own threads would compete for their cores.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            self._fast = FastTokenizer.from_buffer(read_plain(path, MAX_FILE_BYTES))
        except (KeyboardInterrupt, SystemExit):
            raise
        # The library raises plain Exception, and a panic of Rust is a BaseException only.
        except BaseException as exc:
            raise ManifestInvalid(f"{path} is not a tokenizer.json: {exc}") from exc
        self._path = path
        self._n_special = int(self._fast.num_special_tokens_to_add(False))
        self._fast.no_padding()
        self._fast.enable_truncation(max_tokens)
        self.max_tokens = max_tokens
        self._set_prefix(prefix)

    def with_prefix(self, prefix: str) -> Self:
        """The same tokenizer with another prefix; raises ManifestInvalid if that is too long."""
        other = copy(self)
        other._set_prefix(prefix)
        return other

    def _set_prefix(self, prefix: str) -> None:
        self._prefix = prefix
        self.n_around = len(self._encode([prefix])[0]) if prefix else self._n_special
        if self.max_tokens <= self.n_around:
            what = f"special tokens and the prefix {prefix!r}" if prefix else "special tokens"
            raise ManifestInvalid(
                f"{self._path} adds {self.n_around} tokens ({what}), and max_tokens is "
                f"{self.max_tokens}: no text would leave a token"
            )

    def tokenize(self, texts: Sequence[str]) -> list[Encoding]:
        """Clean the texts and split them into tokens; raises RuntimeError if the library panics.

        Prefix and special tokens are added. A result is empty only if the tokenizer has neither,
        and the text no token.
        """
        return self._encode([self._prefix + normalise(text) for text in texts])

    def _encode(self, texts: list[str]) -> list[Encoding]:
        try:
            return self._fast.encode_batch_fast(texts)
        except BaseException as exc:
            if isinstance(exc, Exception | KeyboardInterrupt | SystemExit):
                raise
            raise RuntimeError(f"the tokenizer broke: {exc}") from exc  # a panic of Rust

    def without_tokens(self, texts: Sequence[str]) -> list[int]:
        """The positions of the texts that leave no token, such as one of soft hyphens only."""
        encodings = self.tokenize(texts)
        return [
            i
            for i, (text, encoding) in enumerate(zip(texts, encodings, strict=True))
            if self.leaves_no_token(text, len(encoding))
        ]

    def leaves_no_token(self, text: str, n_tokens: int) -> bool:
        """Whether a text that became `n_tokens` tokens has none of its own among them."""
        if n_tokens > self.n_around:
            return False
        # A short text may share its token with the blank at the end of the prefix.
        return not self._prefix or len(self._encode([normalise(text)])[0]) <= self._n_special


@dataclass(frozen=True, slots=True)
class FieldTokens:
    """The tokens of a text with several fields, in place of an Encoding.

    `marks` has the number of each token's field, from 1. `overflowing` says that a field was cut.
    """

    ids: list[int]
    marks: list[int]
    overflowing: bool

    def __len__(self) -> int:
        return len(self.ids)


Tokens: TypeAlias = Encoding | FieldTokens


def pad(encodings: Sequence[Tokens]) -> TokenBatch:
    """Stack n encodings into arrays (n, longest), padded with zeros on the right."""
    ids = [encoding.ids for encoding in encodings]
    lengths = [len(row) for row in ids]
    width = max(lengths, default=1)
    marks = [encoding.marks for encoding in encodings if isinstance(encoding, FieldTokens)]
    if not marks and min(lengths, default=0) == width:  # all have one length: nothing to pad
        padded_ids = np.array(ids, np.int64)
        mask = np.ones_like(padded_ids)
    else:
        real = np.arange(width) < np.array(lengths, np.int64)[:, None]
        mask = real.astype(np.int64)
        padded_ids = np.zeros((len(ids), width), np.int64)
        padded_ids[real] = [token for row in ids for token in row]
        if marks:
            mask[real] = [mark for row in marks for mark in row]
    truncated = np.array([bool(encoding.overflowing) for encoding in encodings], np.bool_)
    return TokenBatch(padded_ids, mask, truncated)


def length_sorted_chunks(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Split positions, in order of length, so that count x longest stays within `max_tokens`.

    A padded batch costs count x longest, so texts of similar length go together. A text longer than
    the budget goes alone, and one without any token is in no chunk.

    >>> list(length_sorted_chunks([9, 2, 3, 2], max_tokens=9))
    [[1, 3, 2], [0]]
    """
    chunk: list[int] = []
    for position in sorted(
        filter(lengths.__getitem__, range(len(lengths))), key=lengths.__getitem__
    ):
        if chunk and (len(chunk) + 1) * lengths[position] > max_tokens:
            yield chunk
            chunk = []
        chunk.append(position)
    if chunk:
        yield chunk
