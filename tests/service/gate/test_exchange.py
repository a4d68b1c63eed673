"""Whole answers over the wire: one write each, in turn, the connection kept or closed as told."""

import asyncio
from typing import Any

import pytest

from service.api.app import create_app
from service.edge.server import DrainingServer
from service.observe.telemetry import Telemetry
from tests.support.fakes import FakePredict, fake_engine, fake_settings
from tests.support.live import served
from tests.support.raw_http import raw, recommend

pytestmark = pytest.mark.anyio


class Pipe(asyncio.Transport):
    """What was written, write by write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.written = asyncio.Event()

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))
        self.written.set()

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def test_an_answer_is_one_write() -> None:
    app = create_app(fake_engine(FakePredict()), fake_settings(), Telemetry())
    server = DrainingServer(app)
    pipe = Pipe()
    async with app.app.router.lifespan_context(app.app):
        connection = server.config.http_protocol_class(  # type: ignore[call-arg]
            config=server.config, server_state=server.server_state, app_state={}
        )
        connection.connection_made(pipe)
        connection.data_received(recommend("moby dick"))
        await pipe.written.wait()
        connection.connection_lost(None)
    [answer] = pipe.writes
    head, body = answer.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nx-request-id: " in head
    assert b"\r\ncontent-length: %d" % len(body) in head


async def test_requests_sent_ahead_are_answered_in_turn_on_a_kept_connection() -> None:
    async with served() as run, raw(run) as client:
        await client.says(
            recommend("one", b"x-request-id: 1") + recommend("two", b"x-request-id: 2")
        )
        answers = [await client.hears(), await client.hears()]
        await client.says(recommend("three", b"x-request-id: 3", b"connection: close"))
        answers.append(await client.hears())
        assert await client.is_cut()
    assert [status for status, _, _ in answers] == [200, 200, 200]
    assert [headers["x-request-id"] for _, headers, _ in answers] == ["1", "2", "3"]
    assert [headers.get("connection") for _, headers, _ in answers] == [None, None, "close"]


async def test_an_older_client_is_told_that_the_connection_ends() -> None:
    async with served() as run, raw(run) as client:
        await client.says(recommend("one", version=b"1.0"))
        status, headers, _ = await client.hears()
        assert await client.is_cut()
    assert (status, headers["connection"]) == (200, "close")
