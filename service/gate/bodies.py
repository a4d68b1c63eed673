"""Bodies and query strings: each is read once, parsed once and validated.

The error for a bad one names the field at fault and says what to change.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

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
from service.serving.json_object import MAX_FIELDS, TOO_MANY_FIELDS
from service.serving.request_models import VISIBLE
from service.settings.settings import Settings
from service.strict_json import NotJson, outside_strings, place_of
from service.strict_json import parse as parse_strictly

MAX_PARTS: Final = 20_000
"""Lists, objects and names in one body. A choice: 2,000 labels with five fields of metadata each
fit. Parsing blocks the event loop, for 0.1 s with 350,000 lists."""

_LISTS = ("query", "item_id", "input")
"""Fields that take one string or a list."""

_ENTRIES = {
    **{"query": "texts", "input": "texts", "text": "texts", "allow": "ids", "deny": "ids"},
    **{"labels": "labels", "changes": "changes"},
}
"""Lists that may have any length as far as their meaning goes, with the name of their entries. One
that is too long is answered 413; other lists that are too long are answered 422."""

_SENTENCES = {
    "extra_forbidden": "{} is not a known field: remove it",
    "missing": "{} is missing: it is required",
    "model_type": "{} must be a JSON object with the fields that /docs lists",
    "model_attributes_type": "{} must be a JSON object with the fields that /docs lists",
    TOO_MANY_FIELDS: "{} {}",
}
"""What to say for an error of pydantic, by its type, with its place and pydantic's own words."""

_VISIBLE = re.compile(VISIBLE)

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], raw: Any) -> Model:
    """Parsed JSON, validated by this model.

    Raises PayloadTooLarge for a text or list that is too long, InvalidValue for any other fault.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as exc:
        raise refusal(exc.errors(include_url=False), raw) from None


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


def check_json(headers: Mapping[bytes, bytes]) -> None:
    """Raise UnsupportedMediaType unless the headers say that the body is JSON as it is."""
    check_encoding(headers)
    content_type = headers.get(b"content-type", b"")
    if content_type == b"application/json":
        return
    if content_type.split(b";")[0].strip().lower() != b"application/json":
        raise UnsupportedMediaType("send JSON, with the header Content-Type: application/json")


def check_encoding(headers: Mapping[bytes, bytes]) -> None:
    """Raise UnsupportedMediaType if the body is compressed."""
    encoding = headers.get(b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
        name = encoding[:80].decode("latin-1")
        raise UnsupportedMediaType(
            f"the body has Content-Encoding: {name}, and this service reads no compressed body: "
            "send it uncompressed (tritonclient: request_compression_algorithm=None)"
        )


def parse(body: bytes) -> Any:
    """The JSON value of a body.

    Raises MalformedRequest, which names the place of the fault, and PayloadTooLarge.
    """
    if _n_parts(body) > MAX_PARTS and (n_parts := _n_parts(outside_strings(body))) > MAX_PARTS:
        raise PayloadTooLarge(
            f"the body holds {n_parts} lists, objects and names, the limit is {MAX_PARTS}: "
            "send fewer at once"
        )
    try:
        return parse_strictly(body)
    except NotJson as exc:
        raise MalformedRequest(f"the body is not JSON: {exc}") from None


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


def refusal(faults: Sequence[Mapping[str, Any]], raw: Any) -> RequestError:
    """The first of pydantic's faults in `raw` as an error that says where and what to change."""
    for name in _LISTS:
        if isinstance(raw, Mapping) and isinstance(raw.get(name), list):
            # Pydantic also reports why this list is no single string, which helps nobody.
            faults = [fault for fault in faults if fault["loc"] != (name, "constrained-str")]
    fault = faults[0]
    where = _place(fault["loc"], raw)
    kind, context, value = fault["type"], fault.get("ctx", {}), fault["input"]
    if kind == "string_too_long":
        return _too_long(where, value, context["max_length"])
    if kind == "too_long":
        return _too_many(where, len(value), context["max_length"])
    if kind in ("string_too_short", "string_pattern_mismatch"):
        return invisible(where)
    if kind == "extra_forbidden" and where == "item_id":
        return InvalidValue("this bundle has no item filter: remove item_id")
    message = fault["msg"].removeprefix("Value error, ")
    return InvalidValue(_SENTENCES.get(kind, "{}: {}").format(where, message))


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


def _n_parts(body: bytes) -> int:
    return body.count(b"[") + body.count(b"{") + body.count(b":")


def _place(location: tuple[int | str, ...], raw: Any) -> str:
    """A location of pydantic as people write it, without the names of the branches of a union.

    >>> _place(("query", "list[constrained-str]", 3), {"query": [*"abcd"]})
    'query[3]'
    """
    path: list[int | str] = []
    for position, part in enumerate(location):
        if isinstance(part, int):
            raw = raw[part] if isinstance(raw, list) and part < len(raw) else None
        elif isinstance(raw, Mapping) and (part in raw or position == len(location) - 1):
            raw = raw.get(part)
            if part in _LISTS and isinstance(raw, Mapping) and "texts" not in raw:
                raw = None  # the fields of a text, which are validated as one string
        else:
            continue  # a branch of a union
        path.append(part)
    return place_of(tuple(path)) or "the body"
