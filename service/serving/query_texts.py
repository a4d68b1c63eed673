"""The type of a request's texts: one text, one history, or a list of these."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, create_model, model_validator

from service.core.types import MAX_HISTORY_TEXTS, History
from service.serving.json_object import JsonObject

MAX_WEIGHT: Final = 1e6
"""A choice: weights are compared with each other, so a wider range adds nothing."""


class HistoryRequest(JsonObject):
    """Several texts that are one query; `texts_type` adds the limits in force."""

    texts: list[str]
    weights: list[Annotated[float, Field(ge=0, le=MAX_WEIGHT, allow_inf_nan=False)]] | None = Field(
        None, max_length=MAX_HISTORY_TEXTS
    )

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        weights = self.weights
        if weights is None:
            return self
        if len(weights) != len(self.texts):
            raise ValueError(
                f"weights holds {len(weights)} numbers for {len(self.texts)} texts: give one for "
                "each, or leave weights out"
            )
        if not any(weights):
            raise ValueError("weights are all 0: give one text at least a weight above 0")
        return self

    @property
    def history(self) -> History:
        """The history that the engine answers."""
        return History(tuple(self.texts), None if self.weights is None else tuple(self.weights))


@dataclass(frozen=True, slots=True)
class _Kinds:
    """Tells histories from texts, which pydantic would find out by trying both."""

    join: Callable[[Any], Any] | None
    fields: frozenset[str]

    def is_history(self, value: Any) -> bool:
        if isinstance(value, dict):
            return not self.fields or ("texts" in value and "texts" not in self.fields)
        return isinstance(value, HistoryRequest)

    def of_entry(self, value: Any) -> str:
        return "history" if self.is_history(value) else "constrained-str"

    def of(self, value: Any) -> str:
        if not isinstance(value, list):
            return self.of_entry(value)
        return "mixed" if any(map(self.is_history, value)) else "list"

    def joined(self, value: Any) -> Any:
        """The value with one string for each text that is given by its fields."""
        if self.join is None or self.is_history(value):
            return value
        if isinstance(value, list):
            return [each if self.is_history(each) else self.join(each) for each in value]
        return self.join(value)


def texts_type(
    text: Any, max_queries: int, join: Callable[[Any], Any] | None, fields: list[str]
) -> Any:
    """The type of a field that holds one text, one history or up to `max_queries` of them.

    `join` makes one string of each text that is given by its `fields`.
    """

    def many(entry: Any, most: int) -> Any:
        return Annotated[list[entry], Field(min_length=1, max_length=most, fail_fast=True)]

    own = many(text, MAX_HISTORY_TEXTS)
    if join is not None:
        own = Annotated[own, BeforeValidator(join)]
    history: Any = create_model("HistoryBody", __base__=HistoryRequest, texts=(own, ...))

    kinds = _Kinds(join, frozenset(fields))
    one = Annotated[text, Tag("constrained-str")] | Annotated[history, Tag("history")]
    entry = Annotated[one, Discriminator(kinds.of_entry)]
    texts: Any = Annotated[
        one
        | Annotated[many(text, max_queries), Tag("list")]
        | Annotated[many(entry, max_queries), Tag("mixed")],
        Discriminator(kinds.of),
    ]
    return texts if join is None else Annotated[texts, BeforeValidator(kinds.joined)]


def texts_schema(text: dict[str, Any], max_queries: int, fields: list[str]) -> dict[str, Any]:
    """OpenAPI's description of `texts_type`, where `text` describes one text."""
    one = [text]
    if fields:
        names = {name: {"type": "string"} for name in fields}
        by_field = {"type": "object", "properties": names, "additionalProperties": False}
        one.append({**by_field, "minProperties": 1})
    several = {"type": "array", "items": {"anyOf": one}, "minItems": 1}
    weight = {"type": "number", "minimum": 0, "maximum": MAX_WEIGHT}
    history = {
        "type": "object",
        "description": "Several texts that are one query, such as what a user read last.",
        "properties": {
            "texts": {**several, "maxItems": MAX_HISTORY_TEXTS},
            "weights": {
                "anyOf": [
                    {"type": "array", "items": weight, "maxItems": MAX_HISTORY_TEXTS},
                    {"type": "null"},
                ],
                "description": "One for each text, not all 0; without them all weigh alike.",
            },
        },
        "required": ["texts"],
        "additionalProperties": False,
    }
    each = [*one, history]
    many = {"type": "array", "items": {"anyOf": each}, "minItems": 1, "maxItems": max_queries}
    return {"anyOf": [*each, many]}
