"""The schema of manifest.json (docs/bundle.md): every part, strict and frozen.

`service.bundle.verify` reads a manifest and checks the files against it;
`models.seal.bundle_writer` writes one.
"""

import datetime
import hashlib
import json
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION: Final = 1

MANIFEST: Final = "manifest.json"

SIGNATURES: Final = "manifest.sig"
"""Signatures of the manifest, added after sealing: the only file that a manifest does not list."""

POINTER: Final = "CURRENT"

EXACT: Final = "exact"
"""The effort without search parameters, which scans everything: what recall is measured against."""
EFFORTS: Final = ("fast", "balanced", "thorough", EXACT)

# Limits far above any real bundle: no reader reserves memory for a number that is only a claim.
Count = Annotated[int, Field(ge=0, lt=2**31)]
"""Numbers of rows, labels and queries: some arrays of a bundle hold label rows as int32."""

Bytes = Annotated[int, Field(ge=0, lt=2**48)]

Width = Annotated[int, Field(ge=1, le=65536)]
"""Dimensions, tokens of a text, depth of an answer."""

Name = Annotated[str, Field(min_length=1, max_length=128)]

FileNames = Annotated[list[Name], Field(min_length=1, max_length=64)]


def _check_moment(text: str) -> str:
    """Refuse what is no moment of RFC 3339, or none that a computer's clock can count."""
    moment = datetime.datetime.fromisoformat(text)  # raises ValueError
    if moment.tzinfo is None or not 1970 <= moment.year <= 9998:
        raise ValueError("it needs a zone, such as Z, and a year from 1970 on")
    return text


Moment = Annotated[str, Field(max_length=64), AfterValidator(_check_moment)]
"""A date with time and zone, as RFC 3339 writes it."""

Share = Annotated[float, Field(ge=0, le=1)]

NotNegative = Annotated[float, Field(ge=0)]
"""Times, percents and differences; percents have no upper bound, because sums of them round up."""

ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
"""A model's name: part of paths, URLs and metrics."""

Text = Annotated[str, Field(max_length=1024)]
"""A short text that people read, such as a kind or a machine. The bound is a choice."""


Metric = Annotated[str, Field(pattern="^(inner_product|probability)$")]
"""What the raw scores of an index are."""


class Part(BaseModel):
    """Base of all parts: frozen, strict about types, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class FoldedInfo(Part):
    """The changes of catalogue `name` up to `seq`, which a fold put into this bundle.

    `base` is the id of the bundle before the fold. This bundle has its `quality`, `calibration` and
    `parity`; operating points and golden queries are new. The counts are of this fold. The vector
    of an added label is `scale` times the embedding of its text, in later folds too.
    """

    name: ModelName
    seq: Annotated[int, Field(ge=0)]
    base: Text
    scale: Annotated[float, Field(gt=0)]
    n_added: Count
    n_removed: Count
    n_updated: Count
    n_added_in_all: Count
    """Labels that got the vector of their text in any fold so far; some may be removed since."""


class HistogramInfo(Part):
    """Counts of values in bins: up to and with each bound, which rise, and above the last one."""

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
    """What answers at the defaults looked like at sealing; the service measures drift against it.

    `top_score` counts the best served score of each query, `query_tokens` the tokens of each query
    after truncation.
    """

    split: Text
    n_queries: Annotated[int, Field(ge=1, lt=2**31)]
    top_score: HistogramInfo
    query_tokens: HistogramInfo


class CodeInfo(Part):
    """The version and revision of the Astrolabe that wrote the bundle."""

    version: Text
    revision: Text


class DataInfo(Part):
    """The data that the bundle was trained on."""

    name: Text
    sha256: Text
    counts: dict[str, Annotated[int, Field(ge=0)]]


class TextInfo(Part):
    """The text cleaning that the tokenizer expects."""

    normaliser: Text
    version: Count


class FieldInfo(Part):
    """A field of a text, by the name that requests give it, and its most tokens."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    max_tokens: Width


class TokenizerInfo(Part):
    """The tokenizer file, and the most tokens of a text after truncation.

    Before the tokenizer reads the text of a query or of a label, it gets its prefix, as it stands.
    A text of several `fields` has up to the sum of their tokens; a label without any is its first.
    """

    file: str
    max_tokens: Width
    query_prefix: Text = ""
    label_prefix: Text = ""
    fields: Annotated[list[FieldInfo], Field(max_length=8)] = Field(default_factory=list)

    @property
    def limits(self) -> list[int]:
        """The most tokens of each field; of the whole text where it has no fields."""
        return [field.max_tokens for field in self.fields] or [self.max_tokens]

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if self.fields and (
            len({field.name for field in self.fields}) < max(2, len(self.fields))
            or sum(self.limits) != self.max_tokens
        ):
            raise ValueError("fields are two or more, each by its own name, of max_tokens in all")
        return self


class VariantInfo(Part):
    """One precision of the encoder, measured on validation queries on a CPU.

    `max_abs_diff` and `top1_agreement` compare it with torch, `p_at_1_change` (in points) with
    fp32. `encode_us_p50` is the median for one query on one thread, in microseconds. Served scores
    of golden queries may differ from the recorded ones by `golden_drift`, and further by the
    rounding of processors.
    """

    bytes: Bytes
    max_abs_diff: NotNegative
    top1_agreement: Share
    p_at_1: NotNegative
    p_at_1_change: float
    encode_us_p50: NotNegative
    golden_drift: NotNegative | None = None


class EncoderInfo(Part):
    """The ONNX encoder; `variants` maps a precision (fp32, fp16, int8) to its file.

    `file` is the one that serves by default. `measured` has the figures of some precisions.
    """

    file: str
    variants: Annotated[dict[Name, str], Field(min_length=1, max_length=16)]
    dim: Width
    inputs: list[Name]
    opset: Count
    measured: dict[str, VariantInfo] = Field(default_factory=dict)

    @property
    def served(self) -> str:
        """The precision of `file`, which serves by default."""
        return next(name for name, file in self.variants.items() if file == self.file)


class IndexInfo(Part):
    """The label index; `metric` is what its raw scores are: `inner_product` or `probability`."""

    kind: Text
    files: FileNames
    metric: Metric
    params: dict[str, int | float | str]
    n_rows: Annotated[Count, Field(ge=1)]


class MemoryInfo(Part):
    """Training queries whose labels are blended into every answer (retrieval augmentation).

    With `weight` 0 nothing is blended: the memory is there for the re-ranker, which reads it as a
    feature. `files` are the index over the queries, then the offsets, label rows and values of
    their labels. `params` records how the memory was built. The other fields are the parameters of
    the blend in `service.core.index.augmented`; `logit_bias` None means that label scores are
    probabilities.
    """

    kind: Text
    files: Annotated[list[Name], Field(min_length=4, max_length=4)]
    n_rows: Annotated[Count, Field(ge=1)]
    params: dict[str, int | float | str]
    neighbours: Width
    depth: Width
    weight: Annotated[float, Field(ge=0, lt=1)]
    temperature: Annotated[float, Field(gt=0)]
    logit_bias: float | None


class LabelsInfo(Part):
    """The label store, which has the id, text and metadata of each row."""

    files: FileNames
    n_labels: Annotated[Count, Field(ge=1)]


class FilterInfo(Part):
    """The item filter: the label rows that answers about an item leave out, by item id.

    `own_item` says that every label is left out for the item of the same id.
    """

    files: FileNames
    own_item: bool
    n_items: Count
    n_pairs: Annotated[int, Field(ge=0, lt=2**40)]


class CalibrationInfo(Part):
    """How raw scores become served scores.

    `ece_before` and `ece_after` are the expected calibration error on held-out queries, in [0, 1],
    over the first ten labels of each. `first_before` and `first_after` are over the first label
    alone, which ten together can hide; None in bundles of older code.
    """

    file: str | None
    kind: Text
    ece_before: Share | None
    ece_after: Share | None
    first_before: Share | None = None
    first_after: Share | None = None


class RerankInfo(Part):
    """Small trees that re-order the first labels of a search (`service.core.rerank`).

    `graph` is an ONNX graph of `trees` regression trees with at most `leaves` leaves each. It takes
    the `features` in this order. `files` are the arrays that the features read. `depth` is the
    number of candidates that the trees were trained on; an operating point re-ranks as many as its
    parameter `rerank_depth` says, and none without it. `calibration` maps the trees' scores to
    probabilities. `params` records how the trees were trained.
    """

    graph: Name
    files: FileNames
    features: Annotated[list[Name], Field(min_length=1, max_length=64)]
    depth: Width
    trees: Annotated[Count, Field(ge=1)]
    leaves: Annotated[Count, Field(ge=2)]
    calibration: CalibrationInfo
    params: dict[str, int | float | str]


class Defaults(Part):
    """The k and the effort of a request that names none."""

    k: Width
    effort: str


class OperatingPoint(Part):
    """An effort with its search parameters and its measurements.

    `recall_at_10` is a share in [0, 1], P@k in percent, times in microseconds on `machine`.
    """

    name: Name
    params: dict[str, Count]
    recall_at_10: Share
    p_at_1: NotNegative
    p_at_5: NotNegative
    search_us_p50: NotNegative
    search_us_p99: NotNegative
    machine: Text


class GoalInfo(Part):
    """The limits that the default effort keeps on validation queries; None is no limit.

    `p99_us` is in microseconds and `recall_at_10` a share, as in an operating point. `p_at_1_loss`
    is in points below an exact search over the trained label vectors; `index_mb` is the size of the
    index files in MB.
    """

    p99_us: float | None = None
    recall_at_10: float | None = None
    p_at_1_loss: float | None = None
    index_mb: float | None = None


class QualityInfo(Part):
    """Metrics on `split` at `effort`, computed by the code that serves.

    `propensity_a` and `propensity_b` are the constants of the propensity model (Jain et al., 2016).
    `errors` are standard errors of some of the metrics, which let points of a series vary together.
    `n_seen` queries share their series with a training point; `unseen` are the metrics without
    them, empty if there are none. All three are empty in bundles of older code.
    """

    split: Text
    n_queries: Count
    effort: Text
    propensity_a: float
    propensity_b: float
    metrics: dict[str, float]
    errors: dict[str, NotNegative] = Field(default_factory=dict)
    n_seen: Count | None = None
    unseen: dict[str, float] = Field(default_factory=dict)


class ParityInfo(Part):
    """How the ONNX graph agrees with torch on the same inputs; the agreement is in [0, 1]."""

    max_abs_diff: NotNegative
    top1_agreement: Share
    n_queries: Count


class Golden(Part):
    """A query and its answer at sealing, at the default effort: label ids and served scores."""

    query: Annotated[str, Field(max_length=1 << 20)]
    label_ids: list[str]
    scores: list[float]


class FileEntry(Part):
    """The size in bytes and the SHA-256 (hex) of a file."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Bytes


class Manifest(Part):
    """The whole of manifest.json."""

    schema_version: Literal[1]
    bundle_id: str
    name: ModelName
    created: Moment
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
    rerank: RerankInfo | None = None
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
