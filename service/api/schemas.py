"""What answers hold: the schemas behind OpenAPI. Requests are `service.serving.request_models`."""

from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, Field

from service.bundle.manifest import (
    CalibrationInfo,
    FilterInfo,
    MemoryInfo,
    OperatingPoint,
    ParityInfo,
    QualityInfo,
    VariantInfo,
)

ScoreKind: TypeAlias = Literal["logit", "cosine", "probability"]


class LabelScore(BaseModel):
    """One recommended label."""

    id: str = Field(description="Stable id of the label, as the training data names it.")
    text: str | None = Field(None, description="The label as a user sees it; `include` text.")
    metadata: dict[str, Any] | None = Field(None, description="With `include` metadata.")
    score: float = Field(description="Higher is better; `score_kind` says what it means.")


class PlanReport(BaseModel):
    """How the labels of a filtered answer were searched."""

    kind: Literal["exact", "filtered"] = Field(
        description="`exact` scored the labels let through; `filtered` searched deeper for them."
    )
    open: int = Field(description="Labels that the filter lets through.")
    labels: int = Field(description="Labels there are.")
    unknown_ids: int = Field(description="Ids in `allow` and `deny` that name no label.")


class Neighbour(BaseModel):
    """A training query that the answer draws on."""

    similarity: float = Field(description="Cosine of its embedding with the query's.")
    labels: list[str] = Field(description="Ids of the labels that it has.")


class PointReport(BaseModel):
    """The operating point that answered, as it was measured when the bundle was sealed."""

    name: str
    recall_at_10: float
    p_at_1: float
    search_us_p50: float


class Explanation(BaseModel):
    """Why these labels, and what the search for them cost."""

    point: PointReport
    margins: list[float] = Field(description="Score of each label above that of the next one.")
    raw_scores: list[float] = Field(description="Scores of the index, before calibration.")
    neighbours: list[Neighbour] | None = Field(
        description="Nearest training queries; null where the bundle keeps none."
    )
    stages_ms: dict[str, float] = Field(
        description="Time in each stage; all but `queue` are of the whole batch."
    )
    batch_queries: int = Field(description="Texts that were computed together.")


class QueryResult(BaseModel):
    """The answer to one text."""

    labels: list[LabelScore] = Field(description="Best first.")
    truncated: bool = Field(description="Whether the end of the text was cut off.")
    embedding: list[float] | None = Field(None, description="With `include` embedding.")
    plan: PlanReport | None = Field(None, description="With `allow`, `deny` or `where`.")
    explanation: Explanation | None = Field(None, description="With `explain`.")


class RecommendResponse(BaseModel):
    """Answers in the order of the texts."""

    results: list[QueryResult]
    bundle_id: str
    effort: str = Field(description="The operating point that answered.")
    score_kind: ScoreKind
    effort_asked: str | None = Field(
        None,
        description="The one asked for, where load made the service answer from a cheaper one.",
    )


class EmbedResponse(BaseModel):
    """Embeddings in the order of the texts."""

    embeddings: list[list[float]]
    dim: int
    truncated: list[bool] = Field(description="Whether the end of each text was cut off.")
    bundle_id: str


class LabelResponse(BaseModel):
    """One label."""

    id: str
    text: str
    metadata: dict[str, Any]
    source: Literal["bundle", "added"] = Field(
        description="`added` was put in or changed since the bundle was sealed."
    )
    bundle_id: str


class BundleReport(BaseModel):
    """One open bundle."""

    bundle_id: str
    created: str
    role: Literal["current", "canary"]
    canary_percent: float | None = Field(description="The canary's share; null for others.")


class ModelReport(BaseModel):
    """What serves under one name."""

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
    """Everything that is being served: in full, and in the form of OpenAI's API."""

    models: list[ModelReport]
    object: Literal["list"] = "list"
    data: list[ModelObject]


class DeviceReport(BaseModel):
    """The device asked for, and the one in use."""

    requested: str
    active: str


class EncoderReport(BaseModel):
    """The precision that the encoder runs in, and what each precision was measured to be."""

    variant: str
    default: str = Field(description="What the bundle runs where no precision is asked for.")
    available: list[str]
    measured: dict[str, VariantInfo]


class AdaptiveEffortReport(BaseModel):
    """The ceiling on effort, which falls while requests wait too long."""

    ceiling: str = Field(description="No answer is costlier now, unless it was asked to be strict.")
    steps_down: int = Field(description="How far that is below full effort; 0 lowers nobody.")
    steps: list[str] = Field(description="What the ceiling may be, cheapest first.")


class LabelRulesReport(BaseModel):
    """What the operator's rules leave of the labels, whatever a request asks for."""

    open: int = Field(description="Labels that may answer.")
    labels: int = Field(description="Labels there are.")


class LimitsReport(BaseModel):
    """Limits in force."""

    max_queries: int
    max_text_chars: int
    max_tokens: int
    max_k: int
    max_filter_ids: int
    max_body_bytes: int
    max_batch_tokens: int
    max_queue_tokens: int
    bulk_queue_share: float = Field(
        description="Share of max_queue_tokens that requests of priority bulk may fill."
    )
    request_timeout_ms: int
    request_timeout_max_ms: int


class InfoResponse(BaseModel):
    """The open bundle of a model, its measured quality, and the limits in force."""

    name: str
    models: list[str] = Field(description="Every name that a request's `model` may have.")
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
        description="Training queries blended into every answer; null where there are none."
    )
    item_filter: FilterInfo | None = Field(
        description="What `item_id` leaves out; null where the bundle has no item filter."
    )
    label_rules: LabelRulesReport | None = Field(
        description="Null where the operator pins no labels of this model."
    )
    adaptive_effort: AdaptiveEffortReport | None = Field(
        description="Null where every query is answered at the effort that it asks for."
    )
    encoder: EncoderReport
    device: DeviceReport
    lanes: int
    limits: LimitsReport


class Status(BaseModel):
    """The answer of a probe that succeeds."""

    status: Literal["alive", "ready"]
