"""JsonObject: the base of all JSON objects in requests."""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

MAX_FIELDS: Final = 32
"""More fields than any object of a request needs. Validating 100,000 unknown ones would block the
event loop for 0.4 s."""
TOO_MANY_FIELDS: Final = "too_many_fields"
"""Type of the error of pydantic for an object with more fields."""

_ABOUT: Final = frozenset({"title", "description", "default", "examples"})
"""What a schema says about a field, whatever type the field has."""


class JsonObject(BaseModel):
    """A JSON object in a request: an optional field that is null is one that was left out.

    One with too many fields is refused before pydantic writes an error for each unknown one.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_null(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if len(value) > MAX_FIELDS:
            numbers = {"n": len(value), "limit": MAX_FIELDS}
            raise PydanticCustomError(
                TOO_MANY_FIELDS,
                "has {n} fields, the limit is {limit}: send only those in /docs",
                numbers,
            )
        if None in value.values():
            known = cls.model_fields
            return {name: v for name, v in value.items() if v is not None or name not in known}
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The schema, in which every optional field may be null as `_leave_out_null` has it."""
        schema = handler(core_schema)
        fields = handler.resolve_ref_schema(schema)
        for name, field in fields.get("properties", {}).items():
            if name not in fields.get("required", ()) and not _takes_null(field):
                about = {key: field.pop(key) for key in _ABOUT & field.keys()}
                fields["properties"][name] = {"anyOf": [field, {"type": "null"}], **about}
        return schema


def _takes_null(schema: JsonSchemaValue) -> bool:
    return schema.get("type") == "null" or any(map(_takes_null, schema.get("anyOf", ())))
