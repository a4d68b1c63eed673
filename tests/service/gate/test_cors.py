"""CORS over a real connection: what a page of another origin may do, and read."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.support.fakes import JSON, SAFETY_S
from tests.support.live import Served, served
from tests.support.overload import SMALL, overload
from tests.support.raw_http import raw

pytestmark = pytest.mark.anyio

PAGE = "https://app.example"
OTHERS = ("https://evil.example", "http://app.example", PAGE + ".evil")
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type",
}
POST = b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\norigin: %s\r\n" % PAGE.encode()


async def preflight(run: Served, origin: str = PAGE) -> httpx.Response:
    headers = {"origin": origin} | PREFLIGHT
    return await run.client.request("OPTIONS", "/v1/recommend", headers=headers)


def permission(answer: httpx.Response) -> list[str]:
    """Every header that permits an origin: browsers accept one only."""
    return answer.headers.get_list("access-control-allow-origin")


async def test_a_preflight_of_a_listed_origin_needs_no_key() -> None:
    async with served(cors_origins=PAGE, api_key="sesame") as run:
        answer = await preflight(run)
        metrics = (await run.client.get("/metrics")).text
    assert answer.status_code == 200
    assert permission(answer) == [PAGE]
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert {"authorization", "x-bundle", "x-request-priority"} <= set(allowed)
    assert "access-control-allow-credentials" not in answer.headers
    assert "x-request-id" in answer.headers
    assert 'astrolabe_request_seconds_count{route="preflight",status="200"} 1.0' in metrics


@pytest.mark.parametrize(
    ("settings", "method", "path", "headers", "status"),
    [
        ({}, "POST", "/v1/recommend", JSON, 200),
        ({}, "GET", "/v1/info", {}, 200),
        ({}, "PUT", "/v1/recommend", {}, 405),
        ({}, "GET", "/none", {}, 404),
        ({}, "POST", "/v1/recommend", {}, 415),
        ({}, "POST", "/v2/models/tiny/infer", JSON, 400),
        ({"api_key": "sesame"}, "GET", "/v1/info", {}, 401),
        ({"max_body_bytes": 5}, "POST", "/v1/recommend", JSON, 413),
        ({"rate_limit_per_s": 0.001, "rate_burst": 1}, "POST", "/v1/recommend", JSON, 429),
    ],
)
async def test_a_page_may_read_every_answer_errors_too(
    settings: dict[str, Any], method: str, path: str, headers: dict[str, str], status: int
) -> None:
    content = b'{"query":"a"}' if method == "POST" else None
    async with served(cors_origins=f"{PAGE}, https://b.example", **settings) as run:
        for _ in range(2 if status == 429 else 1):
            answer = await run.client.request(
                method, path, content=content, headers=headers | {"origin": PAGE}
            )
    assert answer.status_code == status
    assert permission(answer) == [PAGE]
    assert "retry-after" in answer.headers["access-control-expose-headers"].lower()
    assert answer.headers["vary"] == "Origin"


async def test_a_page_may_read_a_refusal_by_the_connection_and_ask_again() -> None:
    async with served(cors_origins=PAGE, **SMALL) as run, raw(run) as client:
        waiting = await overload(run)
        assert (await preflight(run)).status_code == 200
        await client.says(POST + b"content-length: 0\r\n\r\n")
        status, headers, _ = await client.hears()
        run.predict.release()
        async with asyncio.timeout(SAFETY_S):
            await asyncio.gather(*waiting)
    assert (status, headers["access-control-allow-origin"]) == (429, PAGE)
    assert "retry-after" in headers["access-control-expose-headers"]


async def test_a_page_may_read_that_its_headers_are_too_large() -> None:
    async with served(cors_origins=PAGE, max_header_bytes=1024) as run, raw(run) as client:
        await client.says(POST + b"x: " + b"y" * 2048 + b"\r\n\r\n")
        status, headers, _ = await client.hears()
    assert (status, headers["access-control-allow-origin"]) == (431, PAGE)


@pytest.mark.parametrize("origin", OTHERS)
async def test_other_origins_get_no_permission(origin: str) -> None:
    async with served(cors_origins=PAGE) as run:
        answers = [
            await preflight(run, origin),
            await run.client.get("/v1/info", headers={"origin": origin}),
        ]
    assert [permission(answer) for answer in answers] == [[], []]


async def test_a_star_permits_every_origin() -> None:
    async with served(cors_origins="*") as run:
        answers = [
            await preflight(run),
            await run.client.get("/v1/info", headers={"origin": OTHERS[0]}),
        ]
    assert [permission(answer) for answer in answers] == [["*"], ["*"]]


async def test_without_origins_nothing_is_added() -> None:
    async with served() as run:
        answer = await run.client.get("/v1/info", headers={"origin": PAGE})
    assert not {"vary", "access-control-allow-origin"} & set(answer.headers)
