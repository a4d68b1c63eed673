"""What requests may hold: the models that validate them and that OpenAPI shows.

Limits come from the settings and effort names from the bundle, so the models are built for each
open bundle and state the limits in force.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, create_model

VISIBLE = "[^\\s\\u0000-\\u001f\\u007f-\\u009f\\u200b\\u2028\\u2029\\ufeff]"
"""A text must hold one character that `service.core.encoding.text.normalise` keeps."""

MAX_ID_CHARS = 1024
MAX_WHERE_FIELDS = 16
MAX_MODEL_CHARS = 256

Include: TypeAlias = Literal["text", "metadata", "embedding"]
"""Optional parts of an answer; ids and scores always come."""

Scores: TypeAlias = Literal["served", "raw"]

Value: TypeAlias = str | int | float | bool
"""Of a metadata field."""


class Wanted(BaseModel):
    """What every request for labels may say; `request_models` adds the limits in force."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None
    k: int
    min_score: float | None
    effort: str
    effort_strict: bool
    scores: Scores
    explain: bool
    include: list[Include]
    allow: list[str] | None
    deny: list[str] | None
    where: dict[str, Value | list[Value]] | None


class RecommendRequest(Wanted):
    """The fields of POST /v1/recommend."""

    query: str | list[str]


class ItemRequest(RecommendRequest):
    """The same, for a bundle with an item filter."""

    item_id: str | list[str | None] | None


class ByEmbeddingRequest(Wanted):
    """The fields of POST /v1/recommend/by-embedding."""

    embedding: list[float] | list[list[float]]


class EmbedRequest(BaseModel):
    """The fields of POST /v1/embed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None
    input: str | list[str]


class RecommendParameters(BaseModel):
    """The query string of GET /v1/recommend; `request_models` adds the limits in force."""

    model_config = ConfigDict(extra="forbid")

    q: str
    model: str | None
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
    max_filter_ids: int
    default_k: int
    default_effort: str
    efforts: Sequence[str]
    item_filter: bool
    dim: int


@dataclass(frozen=True, slots=True)
class RequestModels:
    """The models of one bundle's requests."""

    body: type[RecommendRequest]
    parameters: type[RecommendParameters]
    by_embedding: type[ByEmbeddingRequest]
    embed: type[EmbedRequest]


def request_models(limits: RequestLimits) -> RequestModels:
    """Every model under these limits."""
    text: Any = Annotated[
        str,
        StringConstraints(min_length=1, max_length=limits.max_text_chars, pattern=VISIBLE),
    ]
    texts: Any = Annotated[list[text], Field(min_length=1, max_length=limits.max_queries)]
    # min and max as well as the type: what is longer is refused before it is converted
    vector: Any = Annotated[
        list[Annotated[float, Field(allow_inf_nan=False)]],
        Field(min_length=limits.dim, max_length=limits.dim),
    ]
    vectors: Any = Annotated[list[vector], Field(min_length=1, max_length=limits.max_queries)]
    shared, filters = _wanted(limits), _filters(limits)
    examples = ["moby dick", ["moby dick", "a history of rome"]]
    body = create_model(
        "RecommendBody",
        __base__=ItemRequest if limits.item_filter else RecommendRequest,
        __doc__="Texts to recommend labels for.",
        query=(text | texts, Field(description="One text, or a list of texts.", examples=examples)),
        **shared,
        **filters,
        **(_item_id(limits, many=True) if limits.item_filter else {}),
    )
    by_embedding = create_model(
        "ByEmbeddingBody",
        __base__=ByEmbeddingRequest,
        __doc__="Vectors to recommend labels for.",
        embedding=(
            vector | vectors,
            Field(description=f"One vector of {limits.dim} numbers, or a list of vectors."),
        ),
        **shared,
        **filters,
    )
    embed = create_model(
        "EmbedBody",
        __base__=EmbedRequest,
        __doc__="Texts to turn into vectors.",
        input=(text | texts, Field(description="One text, or a list of texts.", examples=examples)),
        model=shared["model"],
    )
    parameters = create_model(
        "RecommendQuery",
        __base__=ItemParameters if limits.item_filter else RecommendParameters,
        q=(text, Field(description="The text.", examples=["moby dick"])),
        **shared,
        **(_item_id(limits, many=False) if limits.item_filter else {}),
    )
    return RequestModels(body, parameters, by_embedding, embed)


def _filters(limits: RequestLimits) -> dict[str, Any]:
    """The fields of a body that shape the answer and that a query string has no room for."""
    label_id: Any = Annotated[str, StringConstraints(max_length=MAX_ID_CHARS)]
    ids: Any = Annotated[list[label_id], Field(max_length=limits.max_filter_ids)]
    value: Any = Annotated[str, StringConstraints(max_length=MAX_ID_CHARS)] | bool | int | float
    values: Any = Annotated[list[value], Field(max_length=limits.max_filter_ids)]
    return {
        "scores": (
            Scores,
            Field("served", description="`raw`: as the index gives them, before calibration."),
        ),
        "explain": (bool, Field(False, description="Say why, and what it cost.")),
        "include": (
            list[Include],
            # a factory: pydantic would copy a list given as default, deeply, for each request
            Field(
                default_factory=lambda: ["text"],
                max_length=8,
                description="Optional parts of the answer.",
                json_schema_extra={"default": ["text"]},
            ),
        ),
        "allow": (
            ids | None,
            Field(None, description="Only these label ids; unknown ones match nothing."),
        ),
        "deny": (ids | None, Field(None, description="None of these label ids.")),
        "where": (
            Annotated[dict[label_id, value | values], Field(max_length=MAX_WHERE_FIELDS)] | None,
            Field(
                None,
                description="Only labels whose metadata has, in every field named, the value or "
                "one of the values.",
                examples=[{"shelf": 3}, {"shelf": [3, 4]}],
            ),
        ),
    }


def _wanted(limits: RequestLimits) -> dict[str, Any]:
    """The fields that say how many labels are wanted, and how hard to look."""
    effort: Any = Literal[tuple(limits.efforts)]
    return {
        "model": (
            Annotated[str, StringConstraints(max_length=MAX_MODEL_CHARS)] | None,
            Field(None, description="Name of the model; GET /v1/models lists them."),
        ),
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
    one: Any = Annotated[str, StringConstraints(max_length=MAX_ID_CHARS)]
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
