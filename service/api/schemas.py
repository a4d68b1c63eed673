"""What requests may hold and answers do hold: the schemas behind validation and OpenAPI.

Limits come from the settings and effort names from the bundle, so the request models are built per
application and OpenAPI states the limits in force.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, create_model

from service.bundle import (
    CalibrationInfo,
    FilterInfo,
    MemoryInfo,
    OperatingPoint,
    ParityInfo,
    QualityInfo,
    VariantInfo,
)

VISIBLE = "[^\\s\\u0000-\\u001f\\u007f-\\u009f\\u200b\\u2028\\u2029\\ufeff]"
"""A text must hold one character that `service.core.text.normalise` keeps."""

MAX_ITEM_ID_CHARS = 1024

Include: TypeAlias = Literal["text", "metadata", "embedding"]
"""Optional parts of an answer; ids and scores always come."""

ScoreKind: TypeAlias = Literal["logit", "cosine", "probability"]


class RecommendRequest(BaseModel):
    """The fields of POST /v1/recommend; `request_models` adds the limits in force."""

    model_config = ConfigDict(extra="forbid", strict=True)

    query: str | list[str]
    k: int
    min_score: float | None
    effort: str
    effort_strict: bool
    include: list[Include]


class ItemRequest(RecommendRequest):
    """The same, for a bundle with an item filter."""

    item_id: str | list[str | None] | None


class RecommendParameters(BaseModel):
    """The query string of GET /v1/recommend; `request_models` adds the limits in force."""

    model_config = ConfigDict(extra="forbid")

    q: str
    k: int
    min_score: float | None
    effort: str
    effort_strict: bool


class ItemParameters(RecommendParameters):
    """The same, for a bundle with an item filter."""

    item_id: str | None


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a request may ask for, and what it gets where it does not say."""

    max_queries: int
    max_text_chars: int
    max_k: int
    default_k: int
    default_effort: str
    efforts: Sequence[str]
    item_filter: bool


def request_models(
    limits: RequestLimits,
) -> tuple[type[RecommendRequest], type[RecommendParameters]]:
    """The body model and the query-string model under these limits."""
    text: Any = Annotated[
        str,
        StringConstraints(min_length=1, max_length=limits.max_text_chars, pattern=VISIBLE),
    ]
    texts: Any = Annotated[list[text], Field(min_length=1, max_length=limits.max_queries)]
    shared = _wanted(limits)
    body = create_model(
        "RecommendBody",
        __base__=ItemRequest if limits.item_filter else RecommendRequest,
        __doc__="Texts to recommend labels for.",
        query=(
            text | texts,
            Field(
                description="One text, or a list of texts.",
                examples=["moby dick", ["moby dick", "a history of rome"]],
            ),
        ),
        include=(
            list[Include],
            # a factory: pydantic would copy a list given as default, deeply, for each request
            Field(
                default_factory=lambda: ["text"],
                max_length=8,
                description="Optional parts of the answer.",
                json_schema_extra={"default": ["text"]},
            ),
        ),
        **shared,
        **(_item_id(limits, many=True) if limits.item_filter else {}),
    )
    parameters = create_model(
        "RecommendQuery",
        __base__=ItemParameters if limits.item_filter else RecommendParameters,
        q=(text, Field(description="The text.", examples=["moby dick"])),
        **shared,
        **(_item_id(limits, many=False) if limits.item_filter else {}),
    )
    return body, parameters


def _wanted(limits: RequestLimits) -> dict[str, Any]:
    """The fields that say how many labels are wanted, and how hard to look."""
    effort: Any = Literal[tuple(limits.efforts)]
    return {
        "k": (
            Annotated[int, BeforeValidator(_whole)],
            Field(limits.default_k, ge=1, le=limits.max_k, description="Labels wanted per text."),
        ),
        "min_score": (
            float | None,
            Field(
                None,
                allow_inf_nan=False,
                description="Leave out labels with a lower score (score_kind says what it means).",
            ),
        ),
        "effort": (
            effort,
            Field(limits.default_effort, description="Operating point; GET /v1/info lists them."),
        ),
        "effort_strict": (
            bool,
            Field(False, description="Keep to the effort also where the service lowers it."),
        ),
    }


def _item_id(limits: RequestLimits, many: bool) -> dict[str, Any]:
    """The field that names the item of a text; with `many`, also those of a list of texts."""
    one: Any = Annotated[str, StringConstraints(max_length=MAX_ITEM_ID_CHARS)]
    each: Any = Annotated[list[one | None], Field(min_length=1, max_length=limits.max_queries)]
    what = "Item that the text describes: it and what is filtered for it are left out."
    if many:
        what += " For a list of texts a list as long, null where a text has no item."
    return {
        "item_id": (
            one | each | None if many else one | None,
            Field(
                None,
                description=what,
                examples=["pg2701", ["pg2701", None]] if many else ["pg2701"],
            ),
        )
    }


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 10.0 is the integer 10, as JSON Schema has it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class LabelScore(BaseModel):
    """One recommended label."""

    id: str = Field(description="Stable id of the label, as the training data names it.")
    text: str | None = Field(None, description="The label as a user sees it; `include` text.")
    metadata: dict[str, Any] | None = Field(None, description="With `include` metadata.")
    score: float = Field(description="Higher is better; `score_kind` says what it means.")


class QueryResult(BaseModel):
    """The answer to one text."""

    labels: list[LabelScore] = Field(description="Best first.")
    truncated: bool = Field(description="Whether the end of the text was cut off.")
    embedding: list[float] | None = Field(None, description="With `include` embedding.")


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


class LimitsReport(BaseModel):
    """Limits in force."""

    max_queries: int
    max_text_chars: int
    max_tokens: int
    max_k: int
    max_body_bytes: int
    max_batch_tokens: int
    max_queue_tokens: int
    request_timeout_ms: int
    request_timeout_max_ms: int


class InfoResponse(BaseModel):
    """What is being served, how good it was measured to be, and within which limits."""

    name: str
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
    adaptive_effort: AdaptiveEffortReport | None = Field(
        description="Null where every query is answered at the effort that it asks for."
    )
    encoder: EncoderReport
    device: DeviceReport
    lanes: int
    limits: LimitsReport


class Status(BaseModel):
    """Answer of a probe that found nothing wrong."""

    status: Literal["alive", "ready"]
