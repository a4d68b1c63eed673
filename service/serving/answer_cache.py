"""AnswerCache: whole answers by whole bodies, for callers who ask the same again and again.

One for each open bundle, so an answer never outlives the bundle that gave it; emptied when a label
changes. Nothing is parsed into a key: a body that differs by a space is another one.
"""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """A body as it was sent, the operating point it came from, and how many texts it answers."""

    body: bytes
    effort: str
    n_queries: int


class AnswerCache:
    """The answers last asked for, `entries` at most. For one thread."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._answers: OrderedDict[bytes, CachedAnswer] = OrderedDict()
        self._catalogue_seq = 0

    def get(self, asked: bytes, catalogue_seq: int) -> CachedAnswer | None:
        """The answer to a body under this state of the catalogue."""
        if catalogue_seq != self._catalogue_seq:
            self._answers.clear()
            self._catalogue_seq = catalogue_seq
        found = self._answers.get(asked)
        if found is not None:
            self._answers.move_to_end(asked)
        return found

    def put(self, asked: bytes, answer: CachedAnswer, catalogue_seq: int) -> None:
        """Keep an answer that was made under this state of the catalogue."""
        if catalogue_seq != self._catalogue_seq:
            return  # a label has changed since the request came
        self._answers[asked] = answer
        if len(self._answers) > self._entries:
            self._answers.popitem(last=False)
