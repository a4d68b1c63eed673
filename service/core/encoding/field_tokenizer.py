"""Turns texts with several fields into tokens, and opens the tokenizer that a bundle needs.

Each field is tokenised by itself, up to a length of its own, so that a long description leaves the
title whole. The tokens of all fields stand in one row, and each is marked with its field's number.
The mark takes the place of the 1 in the mask, from which the encoder reads it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self, TypeAlias

from tokenizers import Encoding

from service.core.encoding.text import split_fields
from service.core.encoding.tokenizer import FieldTokens, Tokenizer


class FieldTokenizer:
    """A tokenizer for each field. A field that is blank has no tokens, unless all of them are."""

    def __init__(self, views: Sequence[Tokenizer]) -> None:
        self._views = tuple(views)
        self.max_tokens = sum(view.max_tokens for view in views)

    def with_prefix(self, prefix: str) -> Self:
        """The same tokenizers with another prefix; raises ManifestInvalid if that is too long."""
        return type(self)([view.with_prefix(prefix) for view in self._views])

    def tokenize(self, texts: Sequence[str]) -> list[FieldTokens]:
        """As Tokenizer.tokenize, for texts whose fields FIELD_END ends."""
        rows: list[list[tuple[int, Encoding]]] = [[] for _ in texts]
        fields = [split_fields(text, len(self._views)) for text in texts]
        for number, view in enumerate(self._views):
            given = [i for i, parts in enumerate(fields) if _is_read(parts, number)]
            encodings = view.tokenize([fields[i][number] for i in given])
            for i, encoding in zip(given, encodings, strict=True):
                rows[i].append((number + 1, encoding))
        return [_joined(row) for row in rows]

    def without_tokens(self, texts: Sequence[str]) -> list[int]:
        """The positions of the texts that leave no token in any field."""
        return [i for i, text in enumerate(texts) if self._leaves_none(text)]

    def leaves_no_token(self, text: str, n_tokens: int) -> bool:
        """Whether a text that became `n_tokens` tokens has none of its own among them."""
        parts = split_fields(text, len(self._views))
        around = [
            view.n_around for number, view in enumerate(self._views) if _is_read(parts, number)
        ]
        return n_tokens <= sum(around) and self._leaves_none(text)

    def _leaves_none(self, text: str) -> bool:
        parts = zip(self._views, split_fields(text, len(self._views)), strict=True)
        return all(view.without_tokens([part]) for view, part in parts)


AnyTokenizer: TypeAlias = Tokenizer | FieldTokenizer


def open_tokenizer(path: Path, limits: Sequence[int], prefix: str = "") -> AnyTokenizer:
    """Open a `tokenizer.json` for texts of one field, or of several, by the tokens of each.

    Raises ManifestInvalid, FileMissing, FileCorrupt.
    """
    views = [Tokenizer(path, limit, prefix) for limit in limits]
    return views[0] if len(views) == 1 else FieldTokenizer(views)


def _is_read(parts: Sequence[str], number: int) -> bool:
    """Whether the field is read: it is not blank, or the first where all are."""
    return bool(parts[number].strip()) or (number == 0 and not any(p.strip() for p in parts))


def _joined(row: list[tuple[int, Encoding]]) -> FieldTokens:
    return FieldTokens(
        [token for _, encoding in row for token in encoding.ids],
        [mark for mark, encoding in row for _ in encoding.ids],
        any(encoding.overflowing for _, encoding in row),
    )
