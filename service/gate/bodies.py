"""Bodies and query strings: each is read once, parsed once and validated.

The error for a bad one names the field at fault and says what to change.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import orjson
from pydantic import BaseModel, ValidationError
from starlette.types import Receive

from service.errors import (
    Abandoned,
    InvalidValue,
    MalformedRequest,
    PayloadTooLarge,
    RequestError,
    UnsupportedMediaType,
)
from service.serving.request_models import VISIBLE
from service.settings.settings import Settings

MAX_FIELDS = 32
"""More fields than any request needs. Validating 100,000 unknown ones would block the event loop
for 0.4 s."""

_LISTS = ("query", "item_id", "input")
"""Fields that take one string or a list."""

_ENTRIES = {"query": "texts", "input": "texts", "text": "texts", "allow": "ids", "deny": "ids"}
"""Lists that may have any length as far as their meaning goes, with the name of their entries. One
that is too long is answered 413; other lists that are too long are answered 422."""

_VISIBLE = re.compile(VISIBLE)

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], raw: Any) -> Model:
    """Parsed JSON, validated by this model.

    Raises PayloadTooLarge for a text or list that is too long, InvalidValue for any other fault.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as exc:
        raise _refusal(exc, raw) from None


async def read_body(receive: Receive) -> bytes:
    """The whole body; raises Abandoned if the client leaves before its end."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Abandoned("the client closed the connection while sending")
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def check_json(content_type: bytes) -> None:
    """Raise UnsupportedMediaType unless this header says that the body is JSON."""
    if content_type == b"application/json":
        return
    if content_type.split(b";")[0].strip().lower() != b"application/json":
        raise UnsupportedMediaType("send JSON, with the header Content-Type: application/json")


def parse(body: bytes) -> Any:
    """The JSON value of a body; raises MalformedRequest, InvalidValue."""
    # Pydantic's own parser would take NaN and Infinity, which are not JSON.
    try:
        raw = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise MalformedRequest(f"the body is not JSON in UTF-8: {exc}") from None
    if isinstance(raw, dict) and len(raw) > MAX_FIELDS:
        raise InvalidValue(
            f"the body has {len(raw)} fields, the limit is {MAX_FIELDS}: send only those in /docs"
        )
    return raw


def query_string(raw: bytes) -> dict[str, str]:
    """The parameters of a query string; raises MalformedRequest, InvalidValue if one repeats."""
    try:
        pairs = parse_qsl(
            raw.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError as exc:
        raise MalformedRequest(f"the query string cannot be read: {exc}") from None
    values = dict(pairs)
    if len(values) != len(pairs):
        raise InvalidValue("a parameter is given more than once: give each one once")
    return values


def check_texts(name: str, texts: Sequence[str], settings: Settings) -> None:
    """Check that the texts of a foreign protocol obey the limits of /v1/recommend.

    `name` is the field or tensor of the texts. Raises InvalidValue, PayloadTooLarge.
    """
    if not texts:
        raise InvalidValue(f"{name} holds no text: send at least one")
    if len(texts) > settings.max_queries:
        raise _too_many(name, len(texts), settings.max_queries)
    for position, text in enumerate(texts):
        if len(text) > settings.max_text_chars:
            raise _too_long(f"{name}[{position}]", text, settings.max_text_chars)
        if not _VISIBLE.search(text):
            raise invisible(f"{name}[{position}]")


def _refusal(exc: ValidationError, raw: Any) -> RequestError:
    """The first fault as an error that names the field and says what to change."""
    faults = exc.errors(include_url=False, include_context=True)
    for name in _LISTS:
        if isinstance(raw, Mapping) and isinstance(raw.get(name), list):
            # Pydantic also reports why this list is no single string, which helps nobody.
            faults = [fault for fault in faults if fault["loc"] != (name, "constrained-str")]
    fault = faults[0]
    where = _place(fault["loc"])
    kind, context, value = fault["type"], fault.get("ctx", {}), fault["input"]
    if kind == "string_too_long":
        return _too_long(where, value, context["max_length"])
    if kind == "too_long":
        return _too_many(where, len(value), context["max_length"])
    if kind in ("string_too_short", "string_pattern_mismatch"):
        return invisible(where)
    if kind == "extra_forbidden" and where == "item_id":
        return InvalidValue("this bundle has no item filter: remove item_id")
    if kind == "extra_forbidden":
        return InvalidValue(f"{where} is not a known field: remove it")
    if kind == "missing":
        return InvalidValue(f"{where} is missing: it is required")
    if kind == "model_type":
        return InvalidValue("the body must be a JSON object with the fields that /docs lists")
    return InvalidValue(f"{where}: {fault['msg']}")


def _too_many(where: str, length: int, limit: int) -> RequestError:
    entries = _ENTRIES.get(where)
    if entries is not None:
        return PayloadTooLarge(
            f"{where} holds {length} {entries}, the limit is {limit}: send fewer"
        )
    return InvalidValue(f"{where}: it holds {length} entries, the limit is {limit}")


def _too_long(where: str, text: str, limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"{where} has {len(text)} characters, the limit is {limit}")


def invisible(where: str) -> InvalidValue:
    """The error for a text that the tokenizer would leave nothing of."""
    return InvalidValue(f"{where} holds no visible character: send some text")


def _place(location: tuple[int | str, ...]) -> str:
    """A location of pydantic as people write it, without the names of the branches of a union.

    >>> _place(("query", "list[constrained-str]", 3))
    'query[3]'
    """
    name = str(location[0]) if location else "the body"
    return name + "".join(f"[{part}]" for part in location[1:] if isinstance(part, int))
