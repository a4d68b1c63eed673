"""Shedding: what is refused unread, for how long, and that the connection goes on."""

import json

import pytest

from service.api.shedding import SHED_S, Shedding
from service.errors import InvalidValue, OverloadError, QueueFull
from tests.service.api.test_connection import raw, rejected
from tests.service.api.test_server import served
from tests.service.fakes import FakeClock

URL = b"/v1/recommend"


def shedding(clock: FakeClock, counted: list[str]) -> Shedding:
    def count(error: OverloadError) -> None:
        counted.append(error.code)

    return Shedding(clock, 2.0, count)


def test_like_requests_are_refused_for_a_moment_after_a_refusal() -> None:
    clock, counted = FakeClock(), []
    shed = shedding(clock, counted)
    assert shed.refusal(URL, []) is None
    shed.begin(QueueFull("full"), 2.0)
    assert isinstance(shed.refusal(URL, []), QueueFull)
    assert isinstance(shed.refusal(URL + b"?q=x", []), QueueFull)
    assert shed.refusal(b"/readyz", []) is None
    assert counted == ["queue_full", "queue_full"]
    clock.advance(SHED_S)
    assert shed.refusal(URL, []) is None


def test_who_has_longer_than_the_one_refused_is_asked() -> None:
    clock = FakeClock()
    shed = shedding(clock, [])
    shed.begin(QueueFull("full"), 0.5)
    assert shed.refusal(URL, [(b"x-request-timeout-ms", b"500")]) is not None
    assert shed.refusal(URL, [(b"x-request-timeout-ms", b"501")]) is None
    assert shed.refusal(URL, [(b"x-request-timeout-ms", b"soon")]) is None
    assert shed.refusal(URL, []) is None


def test_other_errors_shed_nothing() -> None:
    shed = shedding(FakeClock(), [])
    shed.begin(InvalidValue("k"), 2.0)
    assert shed.refusal(URL, []) is None


@pytest.mark.anyio
async def test_a_request_shed_leaves_the_connection_usable() -> None:
    body = b'{"query": "moby dick"}'
    head = b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    request = head + b"content-length: %d\r\n\r\n" % len(body) + body
    async with served() as run, raw(run) as client:
        serving = run.server._serving
        now = serving.clock()
        serving.shedding.clock = lambda: now  # the moment lasts
        serving.shedding.begin(QueueFull("full", retry_after_s=1.0), 2.0)
        ids = set()
        for _ in range(2):
            await client.says(request[:40])
            await client.says(request[40:])
            status, headers, problem = await client.hears()
            assert (status, headers["retry-after"]) == (429, "1")
            assert headers["content-type"] == "application/problem+json"
            assert headers["x-request-id"] == json.loads(problem)["request_id"]
            ids.add(headers["x-request-id"])
        assert len(ids) == 2
        serving.shedding.clock = lambda: now + SHED_S
        await client.says(request)
        assert (await client.hears())[0] == 200
        await client.says(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert (await client.hears())[0] == 200
        assert await rejected(run, "queue_full") == 2
