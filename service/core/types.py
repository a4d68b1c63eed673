"""The values that pass between stages, and the array aliases they are made of.

Small frozen dataclasses only: no behaviour beyond derived properties, no I/O. Rows are positions in
the index; label ids and texts come from `service.core.labels`.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Float32Rows: TypeAlias = NDArray[np.float32]
"""(n, dim) float32, C-contiguous."""

Int64Rows: TypeAlias = NDArray[np.int64]
"""(n, width) int64, C-contiguous."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Padded token ids of n texts; `mask` is 1 on real tokens, `truncated` marks cut texts."""

    ids: Int64Rows
    mask: Int64Rows
    truncated: NDArray[np.bool_]

    @property
    def n_tokens(self) -> int:
        """Real tokens, padding not counted."""
        return int(self.mask.sum())


@dataclass(frozen=True, slots=True)
class Hits:
    """Search result of n queries, best first: `rows` (n, k) int64, `scores` (n, k) float32.

    Where an index holds fewer than k rows, k is cut to what it holds: no padding ever leaves it.
    """

    rows: Int64Rows
    scores: Float32Rows


@dataclass(frozen=True, slots=True)
class Query:
    """One text to answer, with how many labels are wanted and how hard to look.

    `item_id` names the item that the text describes, whose filtered labels are left out. A strict
    effort is never lowered under load.
    """

    text: str
    k: int
    effort: str
    item_id: str | None = None
    effort_strict: bool = False


@dataclass(frozen=True, slots=True)
class Prediction:
    """Answer to one query, best first: `rows` (k,) int64, `scores` (k,) float32 as served."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    embedding: NDArray[np.float32]
    truncated: bool


@dataclass(frozen=True, slots=True)
class StageTimings:
    """Seconds each stage took for the whole batch, and what the batch held."""

    tokenize_s: float
    encode_s: float
    search_s: float
    n_tokens: int
    n_padded_tokens: int


@dataclass(frozen=True, slots=True)
class PredictedBatch:
    """Predictions in the order of the queries, and what computing them took."""

    predictions: list[Prediction]
    timings: StageTimings
