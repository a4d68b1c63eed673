"""AnswerCache: whole answers by the bytes of their requests, for callers who repeat themselves.

Each open bundle has a cache of its own, so no answer outlives its bundle. The cache empties when a
label changes. Requests are compared byte by byte: one more space makes another request.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class WholeAnswer:
    """An answer as it is sent: its own headers, its body, and for the metrics its texts.

    `effort` is the operating point that searched; None if nothing was searched, as for embeddings.
    """

    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    effort: str | None
    n_queries: int


class AnswerCache:
    """The `entries` answers that were used last. For one thread."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._answers: OrderedDict[Hashable, WholeAnswer] = OrderedDict()
        self._catalogue_seq = 0

    def get(self, key: Hashable, catalogue_seq: int) -> WholeAnswer | None:
        """The answer to a request; None unless it was made under this state of the catalogue."""
        if catalogue_seq != self._catalogue_seq:
            self._answers.clear()
            self._catalogue_seq = catalogue_seq
        answer = self._answers.get(key)
        if answer is not None:
            self._answers.move_to_end(key)
        return answer

    def put(self, key: Hashable, answer: WholeAnswer, catalogue_seq: int) -> None:
        """Store an answer that was made under this state of the catalogue."""
        if catalogue_seq != self._catalogue_seq:
            return  # a label has changed since the request came
        self._answers[key] = answer
        if len(self._answers) > self._entries:
            self._answers.popitem(last=False)
