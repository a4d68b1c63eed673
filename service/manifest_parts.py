"""The base of every part of a bundle's manifest, and the part that a fold adds to it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


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
