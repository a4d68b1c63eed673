"""The values that pass between stages, and the array aliases they are made of.

Small frozen dataclasses only: no behaviour beyond derived properties, no I/O. Rows are positions in
the index; label ids and texts come from `service.core.labels.labels`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

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


FieldValue: TypeAlias = str | int | float | bool
"""A value of a metadata field that a filter can ask for."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelFilter:
    """Which labels may answer: of `allow` (None: all), none of `deny`, and all of `where`.

    `where` maps a metadata field to the values of which it must have one. One object serves all
    queries of a request, and is compared as an object.
    """

    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    where: Mapping[str, tuple[FieldValue, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FilterPlan:
    """How a filtered answer was found: `n_open` of `n_rows` labels were let through.

    `exact` scored just these; `filtered` searched deeper and dropped the others. `n_unknown` ids
    of the filter name no label.
    """

    kind: Literal["exact", "filtered"]
    n_open: int
    n_rows: int
    n_unknown: int


@dataclass(frozen=True, slots=True)
class Query:
    """One text to answer, with how many labels are wanted and how hard to look.

    With k 0 the embedding is all that is wanted. A `vector` (dim,) stands in for the text, which
    is then empty. `item_id` names the item that the text describes, whose filtered labels are left
    out. A strict effort is never lowered under load.
    """

    text: str
    k: int
    effort: str
    item_id: str | None = None
    effort_strict: bool = False
    label_filter: LabelFilter | None = None
    vector: NDArray[np.float32] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Answer to one query, best first: `rows` (k,) int64, `scores` (k,) float32 as served.

    `raw_scores` (k,) are what the index gave, before calibration. A filtered one has a `plan`.
    `n_tokens` is what the text became after truncation, special tokens counted.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    embedding: NDArray[np.float32]
    truncated: bool
    raw_scores: NDArray[np.float32] | None = None
    plan: FilterPlan | None = None
    n_tokens: int = 0


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
