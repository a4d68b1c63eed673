"""Pydantic models that validate requests, and from which OpenAPI describes them.

The limits come from the settings, and the names of the efforts from the bundle. So each open bundle
has models of its own, which state the limits in force.
"""

import operator
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    create_model,
)

from service.core.encoding.text import join_fields
from service.core.labels.label_id import MAX_ID_CHARS
from service.core.types import LabelFilter
from service.serving.json_object import JsonObject
from service.serving.query_texts import HistoryRequest, texts_schema, texts_type

VISIBLE = "[^\\s\\u0000-\\u001f\\u007f-\\u009f\\u200b\\u2028\\u2029\\ufeff]"
"""A text must hold one character that `service.core.encoding.text.normalise` keeps."""

SCORE_DECIMALS: Final = 6
"""Decimals of a score in an answer: float32 holds no more near 1."""

MAX_WHERE_FIELDS = 16
MAX_MODEL_CHARS = 256
# Choices, far above what real ids, filters and names need. They bound the work for one request.

Include: TypeAlias = Literal["text", "metadata", "embedding"]
"""Optional parts of an answer; ids and scores always come."""

Scores: TypeAlias = Literal["served", "raw"]

_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")

Texts: TypeAlias = str | HistoryRequest | list[str] | list[str | HistoryRequest]
"""One text or history, or a list of these."""

Value: TypeAlias = str | int | float | bool
"""A value of a metadata field."""


class LabelsRequest(JsonObject):
    """The fields that all requests for labels share; `request_models` adds the limits in force."""

    model: str | None
    k: int
    min_score: float | None
    effort: str
    effort_strict: bool
    scores: Scores
    explain: bool
    diversity: float
    include: list[Include]
    allow: list[str] | None
    deny: list[str] | None
    where: dict[str, Value | list[Value]] | None


class RecommendRequest(LabelsRequest):
    """The fields of POST /v1/recommend."""

    query: Texts


class ItemRequest(RecommendRequest):
    """The fields of POST /v1/recommend, for a bundle with an item filter."""

    item_id: str | list[str | None] | None


class ByEmbeddingRequest(LabelsRequest):
    """The fields of POST /v1/recommend/by-embedding."""

    embedding: list[float] | list[list[float]]


class EmbedRequest(JsonObject):
    """The fields of POST /v1/embed."""

    model: str | None
    input: Texts


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
    """The query string of GET /v1/recommend, for a bundle with an item filter."""

    item_id: str | None


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Upper limits of request fields, and defaults of the fields that a request leaves out.

    `fields` are the names of a text's fields, in their order; none if a text has only one.
    """

    max_queries: int
    max_text_chars: int
    max_k: int
    max_filter_ids: int
    default_k: int
    default_effort: str
    efforts: Sequence[str]
    item_filter: bool
    dim: int
    fields: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class RequestModels:
    """The models that validate requests to one bundle."""

    body: type[RecommendRequest]
    parameters: type[RecommendParameters]
    by_embedding: type[ByEmbeddingRequest]
    embed: type[EmbedRequest]


def request_models(limits: RequestLimits) -> RequestModels:
    """Build all models with these limits."""
    text: Any = Annotated[
        str,
        StringConstraints(min_length=1, max_length=limits.max_text_chars, pattern=VISIBLE),
    ]
    fields = list(limits.fields)
    join = _joiner(fields) if fields else None
    texts: Any = Annotated[texts_type(text, limits.max_queries, join, fields), _schema(limits)]
    # With both bounds pydantic refuses a list of another length before it converts the numbers.
    vector: Any = Annotated[
        list[Annotated[float, Field(allow_inf_nan=False)]],
        Field(min_length=limits.dim, max_length=limits.dim, fail_fast=True),
    ]
    vectors: Any = _list(vector, limits.max_queries, 1)
    shared, filters = _shared_fields(limits), _filter_fields(limits)
    examples = ["moby dick", ["moby dick", "a history of rome"]]
    body = create_model(
        "RecommendBody",
        __base__=ItemRequest if limits.item_filter else RecommendRequest,
        __doc__="Texts to recommend labels for.",
        query=(texts, Field(description="One text, or a list of texts.", examples=examples)),
        **shared,
        **filters,
        **(_item_field(limits, many=True) if limits.item_filter else {}),
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
        input=(texts, Field(description="One text, or a list of texts.", examples=examples)),
        model=shared["model"],
    )
    parameters = create_model(
        "RecommendQuery",
        __base__=ItemParameters if limits.item_filter else RecommendParameters,
        q=(text, Field(description="The text.", examples=["moby dick"])),
        **shared,
        **(_item_field(limits, many=False) if limits.item_filter else {}),
    )
    return RequestModels(body, parameters, by_embedding, embed)


def label_filter_of(request: LabelsRequest) -> LabelFilter | None:
    """The filter of a request; None if it lets every label through."""
    allow, deny, where = request.allow, request.deny, request.where
    if allow is None and not deny and not where:
        return None
    values = {
        field: tuple(value) if isinstance(value, list) else (value,)
        for field, value in (where or {}).items()
    }
    return LabelFilter(None if allow is None else tuple(allow), tuple(deny or ()), values)


def n_reaching(scores: Sequence[float], min_score: float | None) -> int:
    """How many of the falling `scores` are not below `min_score`; None lets all through."""
    if min_score is None:
        return len(scores)
    return bisect_right(scores, -min_score, key=operator.neg)


def _list(entry: Any, most: int, least: int = 0) -> Any:
    """The type of a list; its first fault ends validation, which might find a million others."""
    return Annotated[list[entry], Field(min_length=least, max_length=most, fail_fast=True)]


def _joiner(names: Sequence[str]) -> Callable[[Any], Any]:
    """What makes one string of each text that is given by its fields, and leaves all else."""

    def joined(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for name, text in value.items():
            if name not in names:
                raise ValueError(
                    f"a text has no field {name!r:.80}: this model reads {', '.join(names)}"
                )
            if not isinstance(text, str):
                raise ValueError(f"the field {name} of a text must be a string")
        return join_fields(value.get(name, "") for name in names)

    def joined_all(value: Any) -> Any:
        return list(map(joined, value)) if isinstance(value, list) else joined(value)

    return joined_all


def _schema(limits: RequestLimits) -> WithJsonSchema:
    """OpenAPI's description of the texts of a request."""
    text = {"type": "string", "minLength": 1, "maxLength": limits.max_text_chars}
    schema = texts_schema({**text, "pattern": VISIBLE}, limits.max_queries, list(limits.fields))
    return WithJsonSchema(schema)


def _few_fields(value: Any) -> Any:
    # Pydantic would validate all of them before it counts them.
    if isinstance(value, dict) and len(value) > MAX_WHERE_FIELDS:
        raise ValueError(f"it has {len(value)} fields, the limit is {MAX_WHERE_FIELDS}")
    return value


def _filter_fields(limits: RequestLimits) -> dict[str, Any]:
    """The fields of a body, and not of a query string, that shape or filter the answer."""
    label_id: Any = Annotated[str, StringConstraints(max_length=MAX_ID_CHARS)]
    ids: Any = _list(label_id, limits.max_filter_ids)
    value: Any = Annotated[str, StringConstraints(max_length=MAX_ID_CHARS)] | bool | int | float
    values: Any = _list(value, limits.max_filter_ids)
    return {
        "scores": (
            Scores,
            Field("served", description="`raw`: the scores of the index, before calibration."),
        ),
        "explain": (
            bool,
            Field(False, description="Explain the answer: how it was found, and at what cost."),
        ),
        "diversity": (
            Annotated[float, BeforeValidator(_number)],
            Field(
                0.0,
                ge=0,
                le=1,
                allow_inf_nan=False,
                description="How much less a label counts for being like those before it: 0 ranks "
                "by score alone, 1 by difference alone. Scores stay as they are.",
            ),
        ),
        "include": (
            list[Include],
            # A factory, because pydantic makes a deep copy of a default list for each request.
            Field(
                default_factory=lambda: ["text"],
                max_length=8,
                fail_fast=True,
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
            Annotated[
                dict[label_id, value | values],
                Field(max_length=MAX_WHERE_FIELDS),
                BeforeValidator(_few_fields),
            ]
            | None,
            Field(
                None,
                description="Only labels whose metadata has, in every field named, the value or "
                "one of the values.",
                examples=[{"shelf": 3}, {"shelf": [3, 4]}],
            ),
        ),
    }


def _shared_fields(limits: RequestLimits) -> dict[str, Any]:
    """The fields for model, number of labels, lowest score and effort."""
    effort: Any = Literal[tuple(limits.efforts)]
    return {
        "model": (
            Annotated[str, StringConstraints(max_length=MAX_MODEL_CHARS)] | None,
            Field(None, description="Name of the model; GET /v1/models lists them."),
        ),
        "k": (
            Annotated[int, BeforeValidator(_integer)],
            Field(limits.default_k, ge=1, le=limits.max_k, description="Labels wanted per text."),
        ),
        "min_score": (
            Annotated[float | None, BeforeValidator(_number)],
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
            Field(False, description="Keep this effort even while the service lowers efforts."),
        ),
    }


def _item_field(limits: RequestLimits, many: bool) -> dict[str, Any]:
    """The field that names the item of a text; with `many`, also the items of a list of texts."""
    one: Any = Annotated[str, StringConstraints(max_length=MAX_ID_CHARS)]
    each: Any = _list(one | None, limits.max_queries, 1)
    description = (
        "The item that the text describes. The answer leaves out the labels that the bundle "
        "filters for it, such as its own."
    )
    if many:
        description += (
            " For a list of texts: a list of the same length, null for a text without item."
        )
    return {
        "item_id": (
            one | each | None if many else one | None,
            Field(
                None,
                description=description,
                examples=["pg2701", ["pg2701", None]] if many else ["pg2701"],
            ),
        )
    }


def _integer(value: Any) -> Any:
    """Take 10.0 as the integer 10, as JSON Schema does (Validation 2020-12, 6.1.1)."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return _number(value)


def _number(value: Any) -> Any:
    """Refuse a number of a query string that JSON would not take, such as 1_0 or ١٠."""
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        raise ValueError("it is no number: write it in the digits 0 to 9, as in JSON")
    return value
