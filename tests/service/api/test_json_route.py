"""Every route that takes JSON reads it alike: the same statuses, and the place of the fault."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.core.catalogue.changes import Applied
from tests.support.fakes import JSON, FakePredict, Running, fake_engine, running

pytestmark = pytest.mark.anyio

ADMIN = {"Authorization": "Bearer admin"}
DEEP = b"[" * 40 + b"]" * 40


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Running, list[Any]]]:
    """A service around a fake engine, and the label changes that reach it."""
    engine, changes = fake_engine(predict := FakePredict()), []

    def apply(wanted: Any, *_: Any) -> Applied:
        changes.append(wanted)
        return Applied(1, 1, 0, 0, 51)

    engine.catalogue.apply = apply
    async with running(predict, engine, admin_key="admin") as service:
        yield service, changes


def json_routes(service: Running) -> list[tuple[str, str]]:
    """Method and path of every route whose OpenAPI description has a body."""
    paths = service.app.app.openapi()["paths"]
    return [
        (method.upper(), path.format(name="tiny", version="bbbbbbbbbbbb", label_id="L1"))
        for path, operations in paths.items()
        for method, operation in operations.items()
        if "requestBody" in operation
    ]


async def test_the_routes_are_found() -> None:
    async with served() as (service, _):
        routes = json_routes(service)
    assert len(routes) >= 11
    assert {
        ("POST", "/v1/recommend"),
        ("PUT", "/v1/labels/L1"),
        ("POST", "/admin/bundles/canary"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v2/models/tiny/infer"),
    } <= set(routes)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "empty"),
        (b"{", 400, "line 1 column 2"),
        (b'{"a": 1} 2', 400, "line 1 column 10"),
        (b'{"a": {"b": [1, NaN]}}', 400, "NaN is not a number of JSON: line 1 column 17"),
        (b'{"a": Infinity}', 400, "Infinity is not a number of JSON: line 1 column 7"),
        (b'{"a": -Infinity}', 400, "Infinity is not a number of JSON"),
        (b'{"a": 1e400}', 400, "line 1 column 7"),
        (b'{"a": 1, "a": 1}', 400, "the name 'a' stands twice"),
        (b'{"labels": [{"metadata": {"b": 1, "b": 1}}]}', 400, "labels[0].metadata: the name 'b'"),
        (b'{"a": "\\ud800"}', 400, "surrogate in string: line 1 column"),
        (b'{"a": [9223372036854775808]}', 400, "a[0]: the whole number 9223372036854775808"),
        (b'{"a": [123456789012345678901]}', 400, "a[0]: the whole number 1234567890123"),
        (b'{"a": %s}' % DEEP, 400, "nested over 32 deep"),
        (b'\xef\xbb\xbf{"a": 1}', 400, "byte order mark"),
        (b'{"a": "\xff"}', 400, "byte 7 is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), 400, "byte 0 is not UTF-8"),
        (b"\x1f\x8b\x08\x00", 400, "byte 1 is not UTF-8"),
        (b'{"a": [%s]}' % b",".join([b"[]"] * 20_000), 413, "20003 lists, objects and names"),
        (b'{"a": "%s"}' % (b"x" * (1 << 20)), 413, "the body is over 1048576 bytes"),
        (b"[]", 422, "the body must be a JSON object"),
        (b"7", 422, "the body must be a JSON object"),
        (b"null", 422, "the body must be a JSON object"),
        (b"{%s}" % b",".join(b'"f%d":1' % i for i in range(33)), 422, "the body has 33 fields"),
    ],
)
async def test_a_bad_body_is_refused_alike_by_all(body: bytes, status: int, words: str) -> None:
    await refused_by_all(body, JSON, status, words)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"content-type": "text/plain"}, "Content-Type: application/json"),
        ({"content-type": "application/merge-patch+json"}, "Content-Type: application/json"),
        ({}, "Content-Type: application/json"),
        (JSON | {"content-encoding": "gzip"}, "Content-Encoding: gzip"),
        (JSON | {"content-encoding": "identity, br"}, "Content-Encoding: identity, br"),
    ],
)
async def test_what_is_no_plain_json_is_refused_alike_by_all(
    headers: dict[str, str], words: str
) -> None:
    # The protocol of /v2 has JSON and binary data in one body, under any content type.
    spared = "/v2/" if "content-encoding" not in headers else "nothing"
    await refused_by_all(b'{"a": 1}', headers, 415, words, spared)


async def refused_by_all(
    body: bytes, headers: dict[str, str], status: int, words: str, spared: str = "nothing"
) -> None:
    async with served() as (service, changes):
        for method, path in json_routes(service):
            if path.startswith(spared):
                continue
            foreign = path.startswith(("/v2/", "/v1/embeddings"))
            answer = await service.client.request(
                method, path, content=body, headers=ADMIN | headers
            )
            wanted = 400 if foreign and status == 422 else status
            assert (answer.status_code, words in answer.text.replace('\\"', '"')) == (
                wanted,
                True,
            ), f"{method} {path}: {answer.status_code} {answer.text}"
    assert changes == []


LABEL = {"id": "x", "text": "a"}
TENSOR = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}


@pytest.mark.parametrize(
    ("path", "body", "optional"),
    [
        ("/v1/recommend", {"query": "a"}, ["k", "model", "effort", "include", "explain", "where"]),
        ("/v1/recommend", {"query": "a"}, ["min_score", "scores", "effort_strict", "allow"]),
        ("/v1/recommend/by-embedding", {"embedding": [0.5] * 16}, ["k", "effort", "include"]),
        ("/v1/embed", {"input": "a"}, ["model"]),
        ("/v1/embeddings", {"input": "a", "model": "tiny"}, ["encoding_format", "dimensions"]),
        ("/v1/embeddings", {"input": "a", "model": "tiny"}, ["user"]),
        ("/v2/models/tiny/infer", {"inputs": [TENSOR]}, ["outputs", "parameters", "id"]),
        ("/v2/models/tiny/infer", {"inputs": [TENSOR | {"parameters": None}]}, []),
        ("/v2/models/tiny/infer", {"inputs": [TENSOR], "parameters": {"k": None}}, []),
        ("/v1/labels", {"labels": [LABEL | {"metadata": None}]}, []),
        ("/v1/label-changes", {"changes": [{"op": "add", "metadata": None} | LABEL]}, []),
        ("/v1/label-changes", {"changes": [{"op": "update", "text": None, "id": "x"}]}, []),
    ],
)
async def test_an_optional_field_that_is_null_was_left_out(
    path: str, body: dict[str, Any], optional: list[str]
) -> None:
    with_null = body | dict.fromkeys(optional)
    bare = json.loads(json.dumps(with_null), object_hook=_without_null)
    assert bare != with_null
    answers = []
    async with served() as (service, changes):
        for each in (with_null, bare):
            answer = await service.client.post(path, json=each, headers=ADMIN)
            assert answer.status_code == 200, answer.text
            answers.append(answer.json())
    assert answers[0] == answers[1]
    assert changes[:1] == changes[1:]


def _without_null(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


async def test_null_leaves_out_no_field_that_is_unknown_or_required() -> None:
    async with served() as (service, _):
        unknown = await service.recommend({"query": "a", "kk": None})
        assert (unknown.status_code, unknown.json()["detail"][:2]) == (422, "kk")
        required = await service.recommend({"query": None})
        assert (required.status_code, required.json()["detail"][:5]) == (422, "query")


@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "words"),
    [
        ("POST", "labels", {"labels": [LABEL, {"id": "y"}]}, 422, "labels[1].text is missing"),
        ("POST", "labels", {"labels": [LABEL, 3]}, 422, "labels[1] must be a JSON object"),
        ("POST", "labels", {"labels": [LABEL | {"x": 1}]}, 422, "labels[0].x is not a known"),
        ("POST", "labels", {"labels": [LABEL | {"text": "x" * 65537}]}, 413, "labels[0].text has"),
        ("POST", "labels", {"labels": [LABEL] * 2001}, 413, "labels holds 2001 labels"),
        ("POST", "labels", {"labels": [{}] * 9000}, 422, "labels[0].id is missing"),
        (
            "POST",
            "labels",
            {"labels": [{f"f{i}": 1 for i in range(9000)}]},
            422,
            "labels[0] has 9000",
        ),
        (
            "POST",
            "label-changes",
            {"changes": [{"op": "remove", "id": 7}]},
            422,
            "changes[0].id: Input should be a valid string",
        ),
        ("POST", "label-changes", {"changes": [{"op": "x"}]}, 422, "changes[0]: Input tag 'x'"),
        ("PUT", "labels/L1", {"metadata": 7}, 422, "metadata: Input should be a valid dict"),
    ],
)
async def test_a_faulty_field_of_a_label_is_named_with_its_place(
    verb: str, path: str, body: Any, status: int, words: str
) -> None:
    async with served() as (service, changes):
        answer = await service.client.request(verb, f"/v1/{path}", json=body, headers=ADMIN)
    assert (answer.status_code, answer.json()["detail"][: len(words)]) == (status, words)
    assert changes == []


async def test_a_number_of_a_query_string_has_ascii_digits_only() -> None:
    async with served() as (service, _):
        for name in ("k", "min_score"):
            for number in ("1_0", " 10", "10 ", "+10", "1e", "٣", "²", "0x1", "nan", ""):
                answer = await service.client.get("/v1/recommend", params={"q": "a", name: number})
                detail = answer.json()["detail"]
                assert (answer.status_code, detail[: len(name)]) == (422, name), (number, detail)


async def test_numbers_of_a_query_string_are_read() -> None:
    async with served() as (service, _):
        for number in ("0.1", "-1", "1e-3", "0"):
            answer = await service.client.get(f"/v1/recommend?q=a&k=3&min_score={number}")
            assert answer.status_code == 200, answer.text
