"""Pydantic models of answers, from which OpenAPI describes them.

The models of requests are in `service.serving.request_models`.
"""

from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, Field

from service.bundle.manifest import (
    CalibrationInfo,
    FieldInfo,
    FilterInfo,
    MemoryInfo,
    OperatingPoint,
    ParityInfo,
    QualityInfo,
    RerankInfo,
    VariantInfo,
)

ScoreKind: TypeAlias = Literal["logit", "cosine", "probability"]


class LabelScore(BaseModel):
    """One recommended label."""

    id: str = Field(description="Stable id of the label, from the training data or the catalogue.")
    text: str | None = Field(
        None, description="The label as people read it; present if `include` holds text."
    )
    metadata: dict[str, Any] | None = Field(
        None, description="Present if `include` holds metadata."
    )
    score: float = Field(description="Higher is better; `score_kind` says what it means.")
    rule: Literal["boost", "bury", "pin"] | None = Field(
        None, description="The operator's rule that moved this label; absent if none did."
    )


class PlanReport(BaseModel):
    """How the service searched for the labels that a filter lets through."""

    kind: Literal["exact", "filtered"] = Field(
        description="`exact`: every label that the filter lets through was scored. `filtered`: the "
        "index was searched deeper until enough of these labels came."
    )
    open: int = Field(description="Number of labels that the filter lets through.")
    labels: int = Field(description="Number of all labels.")
    unknown_ids: int = Field(description="Number of ids in `allow` and `deny` that no label has.")


class Neighbour(BaseModel):
    """A training query near the query, whose labels the answer looks at."""

    similarity: float = Field(description="Cosine similarity of the two embeddings.")
    labels: list[str] = Field(description="Ids of the training query's labels.")


class PointReport(BaseModel):
    """The operating point that answered, with the figures measured when the bundle was sealed."""

    name: str
    recall_at_10: float = Field(description="Share of the exact top ten that it finds, 0 to 1.")
    p_at_1: float = Field(description="P@1 on the validation points, in percent.")
    search_us_p50: float = Field(description="Median time of one search, in microseconds.")


class MovedReport(BaseModel):
    """A label rule that moved a label."""

    rule: Literal["boost", "bury", "pin"]
    score_without: float = Field(description="The label's served score without a boost.")


class Explanation(BaseModel):
    """Where these labels come from, and how long the search for them took."""

    point: PointReport
    margins: list[float] = Field(description="Score of each label minus the score of the next one.")
    raw_scores: list[float] = Field(
        description="Score of each label before calibration: the index's, or the re-ranker's."
    )
    neighbours: list[Neighbour] | None = Field(
        description="Nearest training queries; null if the bundle has no memory."
    )
    contributions: list[dict[str, float] | None] | None = Field(
        description="Of each label, the re-ranker's score minus the score without each feature; "
        "null for a label that it did not score, and if the operating point does not re-rank."
    )
    rules: list[MovedReport | None] | None = Field(
        description="Of each label, the operator's rule that moved it, else null; null if the "
        "operator's rules move no label."
    )
    stages_ms: dict[str, float] = Field(
        description="Milliseconds in each stage; those after `queue` are for the whole batch."
    )
    batch_queries: int = Field(
        description="Number of queries in the batch that this query was part of."
    )


class QueryResult(BaseModel):
    """The answer to one text or embedding."""

    labels: list[LabelScore] = Field(description="The labels, best first.")
    truncated: bool = Field(description="Whether the encoder read only the beginning of the text.")
    embedding: list[float] | None = Field(None, description="Present if `include` holds embedding.")
    plan: PlanReport | None = Field(
        None, description="Present if the request has `allow`, `deny` or `where`."
    )
    explanation: Explanation | None = Field(None, description="Present if `explain` is true.")


class RecommendResponse(BaseModel):
    """One result for each text or embedding of the request, in the same order."""

    results: list[QueryResult]
    bundle_id: str
    effort: str = Field(description="The operating point that answered.")
    score_kind: ScoreKind
    effort_asked: str | None = Field(
        None,
        description="The operating point of the request. Present only if the service answered from "
        "a cheaper one because of its load.",
    )


class EmbedResponse(BaseModel):
    """One embedding for each text of the request, in the same order."""

    embeddings: list[list[float]]
    dim: int = Field(description="Length of each embedding.")
    truncated: list[bool] = Field(
        description="Of each text, whether the encoder read only its beginning."
    )
    bundle_id: str


class LabelResponse(BaseModel):
    """One label."""

    id: str
    text: str
    metadata: dict[str, Any]
    source: Literal["bundle", "added"] = Field(
        description="`added` if the label was added or changed since the bundle was sealed."
    )
    bundle_id: str


class BundleReport(BaseModel):
    """One open bundle."""

    bundle_id: str
    created: str
    role: Literal["current", "canary"]
    canary_percent: float | None = Field(
        description="The canary's share of the requests, in percent; null for the current bundle."
    )


class ModelReport(BaseModel):
    """One model, and the bundles that answer under its name."""

    name: str
    default: bool = Field(description="Whether it answers requests that name no model.")
    bundles: list[BundleReport]
    can_roll_back: bool


class ModelObject(BaseModel):
    """One model, in the form of OpenAI's API."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When its bundle was sealed, in seconds since 1970.")
    owned_by: Literal["astrolabe"] = "astrolabe"


class ModelsResponse(BaseModel):
    """All models, in the service's own form and in the form of OpenAI's API."""

    models: list[ModelReport]
    object: Literal["list"] = "list"
    data: list[ModelObject] = Field(description="The same models, in the form of OpenAI's API.")


class DeviceReport(BaseModel):
    """The device that the settings request, and the one that the encoder runs on."""

    requested: str
    active: str


class EncoderReport(BaseModel):
    """The variant of the encoder that runs, and the measurements of each variant."""

    variant: str = Field(description="The variant that runs.")
    default: str = Field(description="The variant that runs if the settings name none.")
    available: list[str] = Field(description="The variants that the bundle holds.")
    measured: dict[str, VariantInfo]


class AdaptiveEffortReport(BaseModel):
    """The ceiling on effort, which the service lowers while requests wait too long."""

    ceiling: str = Field(
        description="The costliest effort that the service answers from now. Requests with "
        "`effort_strict` may go above it."
    )
    steps_down: int = Field(description="Steps from full effort down to the ceiling.")
    steps: list[str] = Field(description="The efforts that the ceiling may be, cheapest first.")


class LabelRulesReport(BaseModel):
    """How many labels the operator's label rules allow in answers."""

    open: int = Field(description="Number of labels that answers may contain.")
    labels: int = Field(description="Number of all labels.")


class LimitsReport(BaseModel):
    """The limits in force on one request, one batch, the queue and deadlines."""

    max_queries: int
    max_text_chars: int
    max_tokens: int = Field(description="The encoder reads this many tokens of a text.")
    max_k: int
    max_filter_ids: int
    max_body_bytes: int
    max_batch_tokens: int
    max_queue_tokens: int
    bulk_queue_share: float = Field(
        description="Share of `max_queue_tokens` that requests of priority bulk may fill."
    )
    request_timeout_ms: int
    request_timeout_max_ms: int


class InfoResponse(BaseModel):
    """A bundle, its measured quality, and the limits in force."""

    name: str
    models: list[str] = Field(description="The names that a request may give as `model`.")
    bundle_id: str
    created: str
    version: str = Field(description="Version of the service.")
    n_labels: int
    dim: int
    index_kind: str
    score_kind: ScoreKind
    default_k: int
    default_effort: str
    operating_points: list[OperatingPoint]
    quality: QualityInfo | None
    parity: ParityInfo
    calibration: CalibrationInfo
    memory: MemoryInfo | None = Field(
        description="Training queries whose labels are blended into every answer, or with weight "
        "0 read by the re-ranker; null if the bundle has none."
    )
    rerank: RerankInfo | None = Field(
        description="The trees that re-order the first labels; null if the bundle has none. An "
        "operating point re-orders as many as its parameter `rerank_depth` says."
    )
    item_filter: FilterInfo | None = Field(
        description="The labels that `item_id` leaves out; null if the bundle has no item filter."
    )
    label_rules: LabelRulesReport | None = Field(
        description="Null if the operator has set no label rules for this model."
    )
    adaptive_effort: AdaptiveEffortReport | None = Field(
        description="Null if adaptive effort is off; then every query gets its own effort."
    )
    fields: list[FieldInfo] = Field(
        description="The fields of a text that the model reads apart; empty if it reads one text."
    )
    encoder: EncoderReport
    device: DeviceReport
    lanes: int = Field(description="Threads that compute batches.")
    limits: LimitsReport


class Status(BaseModel):
    """The answer of a probe that succeeds."""

    status: Literal["alive", "ready"]
