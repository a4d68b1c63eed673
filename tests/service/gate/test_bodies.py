"""Bodies and query strings: what is read, and the sentence that says what to change."""

import asyncio
import json
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from service.errors import (
    Abandoned,
    AstrolabeError,
    InvalidValue,
    MalformedRequest,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from service.gate.bodies import MAX_PARTS, check_json, parse, query_string, read_body, validate
from service.serving.json_object import MAX_FIELDS

Text = Annotated[str, StringConstraints(min_length=1, max_length=5)]


class Body(BaseModel):
    """A body with every kind of fault that there is a sentence for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    query: Text | Annotated[list[Text], Field(max_length=2)]
    k: int = Field(10, ge=1)
    deny: Annotated[list[str], Field(max_length=1)] = []
    include: Annotated[list[str], Field(max_length=1)] = []


@pytest.mark.parametrize(
    ("raw", "kind", "sentence"),
    [
        ({"query": "x" * 6}, PayloadTooLarge, "query has 6 characters, the limit is 5"),
        ({"query": ["a", "x" * 7]}, PayloadTooLarge, "query[1] has 7 characters, the limit is 5"),
        ({"query": [*"abc"]}, PayloadTooLarge, "query holds 3 texts, the limit is 2: send fewer"),
        ({"query": "a", "deny": [*"ab"]}, PayloadTooLarge, "deny holds 2 ids, the limit is 1"),
        (
            {"query": "a", "include": [*"ab"]},
            InvalidValue,
            "include: it holds 2 entries, the limit",
        ),
        ({"query": ""}, InvalidValue, "query holds no visible character: send some text"),
        ({"query": ["a", ""]}, InvalidValue, "query[1] holds no visible character"),
        ({"query": "a", "kk": 3}, InvalidValue, "kk is not a known field: remove it"),
        ({"query": "a", "item_id": "x"}, InvalidValue, "no item filter: remove item_id"),
        ({"k": 3}, InvalidValue, "query is missing: it is required"),
        ([], InvalidValue, "the body must be a JSON object"),
        (None, InvalidValue, "the body must be a JSON object"),
        ({"query": "a", "k": 0}, InvalidValue, "k: Input should be greater than or equal to 1"),
        ({"query": "a", "k": "3"}, InvalidValue, "k: Input should be a valid integer"),
    ],
)
def test_the_first_fault_is_one_sentence_with_its_place(
    raw: Any, kind: type[AstrolabeError], sentence: str
) -> None:
    with pytest.raises(kind) as refused:
        validate(Body, raw)
    assert type(refused.value) is kind
    assert sentence in refused.value.detail


def test_what_fits_is_the_request() -> None:
    assert validate(Body, {"query": ["a", "b"], "k": 3}) == Body(query=["a", "b"], k=3)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", MalformedRequest),
        (b"{", MalformedRequest),
        (b'{"k": NaN}', MalformedRequest),  # no JSON, though Python's parser takes it
        (b"\xff", MalformedRequest),
        (b"[" * 5000, MalformedRequest),
        (b"[%s]" % b",".join([b"[]"] * MAX_PARTS), PayloadTooLarge),
    ],
)
def test_what_is_no_json_or_endless_is_refused(body: bytes, kind: type[AstrolabeError]) -> None:
    with pytest.raises(kind):
        parse(body)


def test_brackets_and_colons_inside_texts_do_not_count() -> None:
    texts = ['[{":\\"' * MAX_PARTS, ":", "\\"]
    assert parse(json.dumps({"query": texts}).encode()) == {"query": texts}


@pytest.mark.parametrize(
    ("content_type", "taken"),
    [
        (b"application/json", True),
        (b"application/json; charset=utf-8", True),
        (b" Application/JSON ;x", True),
        (b"", False),
        (b"text/plain", False),
        (b"application/jsonl", False),
    ],
)
def test_a_body_is_taken_only_as_json(content_type: bytes, taken: bool) -> None:
    if taken:
        check_json({b"content-type": content_type})
    else:
        with pytest.raises(UnsupportedMediaType, match="Content-Type: application/json"):
            check_json({b"content-type": content_type})


@pytest.mark.parametrize(
    ("raw", "values"),
    [
        (b"", {}),
        (b"q=moby+dick&k=3", {"q": "moby dick", "k": "3"}),
        (b"q=%C3%BC", {"q": "ü"}),
        (b"q=", {"q": ""}),
        (b"q=a%26b", {"q": "a&b"}),
    ],
)
def test_a_query_string_is_read(raw: bytes, values: dict[str, str]) -> None:
    assert query_string(raw) == values


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"q=a&q=b", InvalidValue),
        (b"q=%FF", MalformedRequest),
        (b"q=\xc3\xbc", MalformedRequest),
        (b"&".join(b"f%d=" % i for i in range(MAX_FIELDS + 1)), MalformedRequest),
    ],
)
def test_a_query_string_that_says_two_things_or_none_is_refused(
    raw: bytes, kind: type[AstrolabeError]
) -> None:
    with pytest.raises(kind):
        query_string(raw)


def read(*messages: dict[str, Any]) -> bytes:
    waiting = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(waiting)

    return asyncio.run(read_body(receive))  # type: ignore[arg-type]


def part(body: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_in_parts_is_whole_at_its_end() -> None:
    assert read(part(b"a", True), part(b"", True), part(b"b", False)) == b"ab"
    assert read({"type": "http.request"}) == b""


def test_a_client_that_leaves_in_the_middle_is_told_apart() -> None:
    with pytest.raises(Abandoned):
        read(part(b"a", True), {"type": "http.disconnect"})
