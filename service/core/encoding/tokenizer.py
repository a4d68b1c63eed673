"""Text to token ids: one fast tokenizer, one truncation policy, padded batches.

Truncation keeps the beginning of a text and is reported per text, never silent. Batches are padded
to their longest text; cutting a batch so that padding stays small is the caller's work
(`length_sorted_chunks`), because only the caller knows the token budget.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as FastTokenizer

from service.bundle.plain_files import read_plain
from service.core.encoding.text import normalise
from service.core.types import TokenBatch
from service.errors import ManifestInvalid

MAX_FILE_BYTES: Final = 64 << 20
"""Vocabularies of 250,000 tokens take a quarter of this."""


class Tokenizer:
    """A `tokenizer.json` with its special tokens, cut at `max_tokens`. Safe to share by threads."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        # The lanes are the parallelism; a second pool inside each would fight them for cores.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            self._fast = FastTokenizer.from_buffer(read_plain(path, MAX_FILE_BYTES))
        except (KeyboardInterrupt, SystemExit):
            raise
        except (
            BaseException
        ) as exc:  # it raises bare Exception, and a panic of Rust is not even one
            raise ManifestInvalid(f"{path} is not a tokenizer.json: {exc}") from exc
        self._fast.no_padding()
        self._fast.enable_truncation(max_tokens)
        self.max_tokens = max_tokens

    def tokenize(self, texts: Sequence[str]) -> list[Encoding]:
        """Normalise and split; special tokens are added, so no text comes out empty.

        Raises RuntimeError where the library breaks.
        """
        try:
            return self._fast.encode_batch_fast([normalise(text) for text in texts])
        except BaseException as exc:
            if isinstance(exc, Exception | KeyboardInterrupt | SystemExit):
                raise
            raise RuntimeError(f"the tokenizer broke: {exc}") from exc  # a panic of Rust


def pad(encodings: Sequence[Encoding]) -> TokenBatch:
    """Stack encodings into (n, longest) arrays, padded with zeros on the right."""
    ids = [encoding.ids for encoding in encodings]
    lengths = [len(row) for row in ids]
    width = max(lengths, default=1)
    if min(lengths, default=0) == width:  # one text, or several of one length: nothing to pad
        padded = np.array(ids, np.int64)
        mask = np.ones_like(padded)
    else:
        real = np.arange(width) < np.array(lengths, np.int64)[:, None]
        mask = real.astype(np.int64)
        padded = np.zeros((len(ids), width), np.int64)
        padded[real] = [token for row in ids for token in row]
    truncated = np.array([bool(encoding.overflowing) for encoding in encodings], np.bool_)
    return TokenBatch(padded, mask, truncated)


def length_sorted_chunks(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Positions in order of length, cut so that count x longest stays within `max_tokens`.

    Padding costs count x longest, so texts of like length go together. A text longer than the
    budget goes alone.

    >>> list(length_sorted_chunks([9, 2, 3, 2], max_tokens=9))
    [[1, 3, 2], [0]]
    """
    chunk: list[int] = []
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        if chunk and (len(chunk) + 1) * lengths[position] > max_tokens:
            yield chunk
            chunk = []
        chunk.append(position)
    if chunk:
        yield chunk
