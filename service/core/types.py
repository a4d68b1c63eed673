"""The values that pass between the stages of an answer, and aliases for their arrays.

They are small frozen dataclasses without I/O. A row is the position of a label in the index;
`service.core.labels.labels` has the ids and texts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Float32Rows: TypeAlias = NDArray[np.float32]
"""(n, dim) float32, C-contiguous."""

Int64Rows: TypeAlias = NDArray[np.int64]
"""(n, width) int64, C-contiguous."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Padded token ids of n texts, each (n, length).

    `mask` is 0 on padding, and on a real token the number of its field, from 1; texts of one field
    have ones alone. `truncated` (n,) marks texts that were cut.
    """

    ids: Int64Rows
    mask: Int64Rows
    truncated: NDArray[np.bool_]

    @property
    def n_tokens(self) -> int:
        """Tokens without padding."""
        return int(np.count_nonzero(self.mask))


@dataclass(frozen=True, slots=True)
class Hits:
    """Search result of n queries, best first: `rows` (n, k) int64, `scores` (n, k) float32.

    It is never padded: if an index holds fewer than k rows, the result has as many columns as rows.
    """

    rows: Int64Rows
    scores: Float32Rows


def no_hits(n: int) -> Hits:
    """The empty result of n queries."""
    return Hits(np.empty((n, 0), np.int64), np.empty((n, 0), np.float32))


FieldValue: TypeAlias = str | int | float | bool
"""A metadata value that a filter can match."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelFilter:
    """Which labels an answer may hold. A label must pass `allow`, `deny` and `where`.

    `allow` lists the only ids that pass (None: all pass), `deny` ids that do not. `where` maps a
    metadata field to its accepted values; a label needs one of them in every field. All queries of
    a request share one object, and filters are compared by identity.
    """

    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    where: Mapping[str, tuple[FieldValue, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FilterPlan:
    """How a filtered answer was computed; `n_open` of the `n_rows` labels pass the filter.

    `exact` scored these labels and no others. `filtered` searched deeper and dropped the others.
    `n_unknown` ids of the filter name no label.
    """

    kind: Literal["exact", "filtered"]
    n_open: int
    n_rows: int
    n_unknown: int


MAX_HISTORY_TEXTS: Final = 50
"""Most texts of one history: what SASRec reads of a user in sparse data.

Its paper is arXiv 1808.09781; section IV has the lengths."""


@dataclass(frozen=True, slots=True)
class History:
    """Several texts that are one query, such as what a user read last.

    `weights`, one for each text, are finite, at least 0 and not all 0; None weighs all alike.
    """

    texts: tuple[str, ...]
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """One text to answer with the best `k` labels, at a named effort.

    A `history` takes the text's place, which is then empty. With k 0 only the embedding is
    computed. A `vector` (dim,) replaces the text, which is then empty. `item_id` names the item
    that the text describes; the answer leaves out the labels that the item filter lists for it. An
    overload never lowers a strict effort. `diversity`, from 0 to 1, is how much less a label counts
    for being like those before it (`service.core.diversity`).
    """

    text: str
    k: int
    effort: str
    item_id: str | None = None
    effort_strict: bool = False
    label_filter: LabelFilter | None = None
    vector: NDArray[np.float32] | None = field(default=None, compare=False)
    history: History | None = None
    diversity: float = 0.0

    @property
    def texts(self) -> tuple[str, ...]:
        """What the encoder reads: the text, the history's texts, or nothing beside a vector."""
        if self.vector is not None:
            return ()
        return (self.text,) if self.history is None else self.history.texts


@dataclass(frozen=True, slots=True)
class Prediction:
    """Answer to one query, best first: `rows` (k,) int64, `scores` (k,) float32 after calibration.

    `raw_scores` (k,) are before calibration: the index's, or the re-ranker's. `searched` are the
    rows as the search of the index ranked them, None where nothing moved them since. `rules` (k,)
    are the codes of the label rules that moved each label (`service.core.labels.moves`), `unruled`
    (k,) its score without a boost; None where no rule moves labels. `embedding` is (dim,). `plan`
    is set if the query had a filter. `n_tokens` is the text's length after truncation, with special
    tokens; it is 0 for a query by vector. `tokenless` says that the text left no token of its own,
    so that the answer means nothing.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    embedding: NDArray[np.float32]
    truncated: bool
    raw_scores: NDArray[np.float32] | None = None
    plan: FilterPlan | None = None
    n_tokens: int = 0
    tokenless: bool = False
    searched: NDArray[np.int64] | None = None
    rules: NDArray[np.int8] | None = None
    unruled: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class StageTimings:
    """Seconds that each stage took for the whole batch, and the batch's tokens.

    `rerank_s` is 0 where no query was re-ranked.
    """

    tokenize_s: float
    encode_s: float
    search_s: float
    n_tokens: int
    n_padded_tokens: int
    rerank_s: float = 0.0

    @property
    def stages(self) -> dict[str, float]:
        """Seconds by the name of the stage, in their order."""
        return {
            "tokenize": self.tokenize_s,
            "encode": self.encode_s,
            "search": self.search_s,
            "rerank": self.rerank_s,
        }


@dataclass(frozen=True, slots=True)
class PredictedBatch:
    """Predictions in the order of the queries, and the time that they took."""

    predictions: list[Prediction]
    timings: StageTimings
