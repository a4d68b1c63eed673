"""The base of every part of a bundle's manifest, and the parts that a bundle may lack."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Part(BaseModel):
    """Frozen, strict, and without fields that are not named."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class FoldedInfo(Part):
    """Changes to the catalogue that a bundle holds: those of `name` up to `seq`.

    `base` is the bundle they were folded into. Its `quality`, `calibration` and `parity` are those
    here; operating points and golden queries were made anew. Counts are of this fold; a label that
    was added has `scale` times the embedding of its text for a vector, in later folds too.
    """

    name: str
    seq: Annotated[int, Field(ge=0)]
    base: str
    scale: Annotated[float, Field(gt=0)]
    n_added: int
    n_removed: int
    n_updated: int
    n_added_in_all: int
    """Labels that all folds so far gave the vector of their text; some may be gone since."""


class HistogramInfo(Part):
    """How many values lie up to each bound, which rise, and above the last one."""

    bounds: Annotated[list[float], Field(min_length=1, max_length=256)]
    counts: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=257)]

    @model_validator(mode="after")
    def _check_fit(self) -> Self:
        if len(self.counts) != len(self.bounds) + 1:
            raise ValueError(
                f"{len(self.counts)} counts for {len(self.bounds)} bounds: one more is needed"
            )
        return self


class ReferenceInfo(Part):
    """What answers looked like when the bundle was sealed, at its defaults: drift is from there.

    `top_score` is of the best served scores, `query_tokens` of the lengths after truncation.
    """

    split: str
    n_queries: Annotated[int, Field(ge=1, lt=2**31)]
    top_score: HistogramInfo
    query_tokens: HistogramInfo
