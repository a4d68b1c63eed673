"""AnswerCache: keeps answers by the bytes of the request body, for callers who repeat themselves.

Each open bundle has its own cache, so an answer never outlives the bundle that computed it. A
change of the catalogue empties the cache. The key is the body as it came, unparsed: two bodies that
differ by a space have two entries.
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
    """A least-recently-used cache of `max_entries` answers. For one thread.

    `catalogue_seq` is the engine's number of the catalogue's state; each change raises it.
    """

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._answers: OrderedDict[Hashable, WholeAnswer] = OrderedDict()
        self._catalogue_seq = 0

    def get(self, key: Hashable, catalogue_seq: int) -> WholeAnswer | None:
        """The answer to a request, or None; computed under this state of the catalogue."""
        if catalogue_seq != self._catalogue_seq:
            self._answers.clear()
            self._catalogue_seq = catalogue_seq
        answer = self._answers.get(key)
        if answer is not None:
            self._answers.move_to_end(key)
        return answer

    def put(self, key: Hashable, answer: WholeAnswer, catalogue_seq: int) -> None:
        """Keep an answer that was computed under this state of the catalogue."""
        if catalogue_seq != self._catalogue_seq:
            return  # a label has changed since the request came
        self._answers[key] = answer
        if len(self._answers) > self._max_entries:
            self._answers.popitem(last=False)
