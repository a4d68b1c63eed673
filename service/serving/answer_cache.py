"""AnswerCache: keeps answers by the bytes of the request body, for callers who repeat themselves.

Each open bundle has its own cache, so an answer never outlives the bundle that computed it. A
change of the catalogue empties the cache. The key is the body as it came, unparsed: two bodies that
differ by a space have two entries.
"""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """An answer's `body`, the operating point that computed it, and how many texts it answers."""

    body: bytes
    effort: str
    n_queries: int


class AnswerCache:
    """A least-recently-used cache of `max_entries` answers. For one thread.

    `catalogue_seq` is the engine's number of the catalogue's state; each change raises it.
    """

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._answers: OrderedDict[bytes, CachedAnswer] = OrderedDict()
        self._catalogue_seq = 0

    def get(self, request_body: bytes, catalogue_seq: int) -> CachedAnswer | None:
        """The answer to this body under this state of the catalogue, or None."""
        if catalogue_seq != self._catalogue_seq:
            self._answers.clear()
            self._catalogue_seq = catalogue_seq
        answer = self._answers.get(request_body)
        if answer is not None:
            self._answers.move_to_end(request_body)
        return answer

    def put(self, request_body: bytes, answer: CachedAnswer, catalogue_seq: int) -> None:
        """Keep an answer that was computed under this state of the catalogue."""
        if catalogue_seq != self._catalogue_seq:
            return  # a label has changed since the request came
        self._answers[request_body] = answer
        if len(self._answers) > self._max_entries:
            self._answers.popitem(last=False)
