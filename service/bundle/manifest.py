"""The schema of manifest.json: every part, strict and frozen.

`service.bundle.verify` reads a manifest and holds it against the files; `models.seal.bundle_writer`
writes one.
"""

import hashlib
import json
from typing import Annotated, Any, Final, Self

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


SCHEMA_VERSION: Final = 1

MANIFEST: Final = "manifest.json"

POINTER: Final = "CURRENT"

EXACT: Final = "exact"
"""The effort without search parameters, which scans everything: what recall is measured against."""
EFFORTS: Final = ("fast", "balanced", "thorough", EXACT)

# What no real bundle comes near, so that nothing is reserved for a number that only claims to be.
Count = Annotated[int, Field(ge=0, lt=2**31)]
"""Rows, labels, pairs: label rows are int32 in the arrays of a bundle."""

Bytes = Annotated[int, Field(ge=0, lt=2**48)]

Width = Annotated[int, Field(ge=1, le=65536)]
"""Dimensions, tokens of a text, depth of an answer."""

Name = Annotated[str, Field(min_length=1, max_length=128)]

FileNames = Annotated[list[Name], Field(min_length=1, max_length=64)]


class CodeInfo(Part):
    """Which Astrolabe wrote the bundle."""

    version: str
    revision: str


class DataInfo(Part):
    """Which data it was trained on."""

    name: str
    sha256: str
    counts: dict[str, int]


class TextInfo(Part):
    """Which text cleaning the tokenizer expects."""

    normaliser: str
    version: int


class TokenizerInfo(Part):
    """The tokenizer file and the longest input it may give the encoder, in tokens."""

    file: str
    max_tokens: Width


class VariantInfo(Part):
    """One precision of the encoder, measured on validation queries on a CPU.

    The first two figures are against torch, `p_at_1_change` (in points) against fp32, the time is
    of one query on one thread. Where this variant runs, served scores of golden queries may differ
    by `golden_drift` from the recorded ones, and by what processors differ in.
    """

    bytes: Bytes
    max_abs_diff: float
    top1_agreement: float
    p_at_1: float
    p_at_1_change: float
    encode_us_p50: float
    golden_drift: float | None = None


class EncoderInfo(Part):
    """The ONNX encoder; `variants` maps a precision (fp32, fp16, int8) to its file.

    `file` is the one that serves where no other is asked for.
    """

    file: str
    variants: Annotated[dict[Name, str], Field(min_length=1, max_length=16)]
    dim: Width
    inputs: list[str]
    opset: int
    measured: dict[str, VariantInfo] = Field(default_factory=dict)

    @property
    def served(self) -> str:
        """Precision of `file`."""
        return next(name for name, file in self.variants.items() if file == self.file)


class IndexInfo(Part):
    """The label index; `metric` is how its raw scores are made (inner_product)."""

    kind: str
    files: FileNames
    metric: str
    params: dict[str, int | float | str]
    n_rows: Annotated[Count, Field(ge=1)]


class MemoryInfo(Part):
    """Training queries whose labels are blended into every answer (retrieval augmentation).

    `files` are the index over the queries, then the offsets, label rows and values of their labels.
    `params` say how the memory was built; the rest is the arithmetic of
    `service.core.index.augmented`; without a `logit_bias` label scores are probabilities already.
    """

    kind: str
    files: Annotated[list[str], Field(min_length=4, max_length=4)]
    n_rows: Annotated[Count, Field(ge=1)]
    params: dict[str, int | float | str]
    neighbours: Width
    depth: Width
    weight: Annotated[float, Field(gt=0, lt=1)]
    temperature: Annotated[float, Field(gt=0)]
    logit_bias: float | None


class LabelsInfo(Part):
    """The label store: row number to label id, text and metadata."""

    files: FileNames
    n_labels: Annotated[Count, Field(ge=1)]


class FilterInfo(Part):
    """The item filter: item id to the label rows that answers about that item leave out.

    `own_item`: every label's own row is among an item's of the same id.
    """

    files: FileNames
    own_item: bool
    n_items: Count
    n_pairs: Annotated[int, Field(ge=0, lt=2**40)]


class CalibrationInfo(Part):
    """How raw scores become what is served; `ece` is held-out, before and after, in [0, 1]."""

    file: str | None
    kind: str
    ece_before: float | None
    ece_after: float | None


class Defaults(Part):
    """What a request gets that does not say."""

    k: Width
    effort: str


class OperatingPoint(Part):
    """One measured point of the precision/latency curve. Shares are in [0, 1], P@k in percent."""

    name: Name
    params: dict[str, Count]
    recall_at_10: float
    p_at_1: float
    p_at_5: float
    search_us_p50: float
    search_us_p99: float
    machine: str


class GoalInfo(Part):
    """What the default effort was chosen to hold on validation queries; None is no constraint.

    Microseconds and recall@10 (a share) as an operating point has them; P@1 in points below exact
    search with the trained label vectors, the index files in MB.
    """

    p99_us: float | None = None
    recall_at_10: float | None = None
    p_at_1_loss: float | None = None
    index_mb: float | None = None


class QualityInfo(Part):
    """Figures of the split named, through the very code that serves, at the default effort."""

    split: str
    n_queries: int
    effort: str
    propensity_a: float
    propensity_b: float
    metrics: dict[str, float]


class ParityInfo(Part):
    """ONNX against torch on the same inputs; agreement is a share in [0, 1]."""

    max_abs_diff: float
    top1_agreement: float
    n_queries: int


class Golden(Part):
    """A query with the answer recorded at sealing, at the default effort."""

    query: Annotated[str, Field(max_length=1 << 20)]
    label_ids: list[str]
    scores: list[float]


class FileEntry(Part):
    """What a file must be, to the byte."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Bytes


class Manifest(Part):
    """The whole of manifest.json."""

    schema_version: int
    bundle_id: str
    name: str
    created: str
    code: CodeInfo
    data: DataInfo
    config: dict[str, Any]
    text: TextInfo
    tokenizer: TokenizerInfo
    encoder: EncoderInfo
    index: IndexInfo
    memory: MemoryInfo | None = None
    labels: LabelsInfo
    filter: FilterInfo | None = None
    folded: FoldedInfo | None = None
    calibration: CalibrationInfo
    defaults: Defaults
    operating_points: Annotated[list[OperatingPoint], Field(min_length=1, max_length=64)]
    goal: GoalInfo | None = None
    quality: QualityInfo | None
    reference: ReferenceInfo | None = None
    parity: ParityInfo
    golden: Annotated[list[Golden], Field(max_length=10_000)]
    files: dict[str, FileEntry]


def bundle_id_of(manifest: dict[str, Any]) -> str:
    """SHA-256 (hex) of the canonical manifest without its `bundle_id`."""
    body = {key: value for key, value in manifest.items() if key != "bundle_id"}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
