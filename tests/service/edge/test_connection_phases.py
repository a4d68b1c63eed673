"""Every phase of a connection has a bound in bytes and a clock: one row for each hostile client."""

import asyncio
import socket

import pytest

from service.edge import connection
from tests.support.hostile_http import Case, play
from tests.support.hostile_rows import (
    A_MOMENT_S,
    BROKEN_ONES,
    CHUNKED,
    ENDLESS_ONES,
    QUERY,
    SHORT,
    SLOW_ONES,
    SOUND_ONES,
)
from tests.support.live import served
from tests.support.raw_http import RECOMMEND, raw, recommend

pytestmark = pytest.mark.anyio


@pytest.fixture
def short_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINGER_S", A_MOMENT_S)
    monkeypatch.setattr(connection, "STALL_S", A_MOMENT_S)


def rows(*tables: list[Case]) -> pytest.MarkDecorator:
    cases = [one for table in tables for one in table]
    return pytest.mark.parametrize("one", cases, ids=[one.name for one in cases])


async def check(one: Case, **settings: object) -> None:
    async with served(**(one.settings or settings)) as run:
        answers, detail, kept = await play(run, one)
        assert (answers, kept) == (one.answers, one.kept)
        assert one.detail in detail
        assert (await run.client.get("/livez")).status_code == 200


@pytest.mark.usefixtures("short_clocks")
@rows(ENDLESS_ONES)
async def test_what_has_no_end_is_refused_at_its_bound(one: Case) -> None:
    await check(one, **SHORT | {"request_timeout_ms": 5000})


@pytest.mark.usefixtures("short_clocks")
@rows(SLOW_ONES)
async def test_what_is_slow_is_ended_by_its_clock(one: Case) -> None:
    await check(one, **SHORT)


@rows(BROKEN_ONES)
async def test_what_is_broken_is_400_and_cut(one: Case) -> None:
    await check(one)


@rows(SOUND_ONES)
async def test_what_is_unusual_but_sound_is_answered(one: Case) -> None:
    await check(one)


@pytest.mark.parametrize("n_bytes", [2_000_000, 20_000_000, 60_000_000])
async def test_a_refusal_arrives_at_a_client_that_sends_its_whole_body_first(n_bytes: int) -> None:
    async with served() as run, raw(run) as client:
        await client.says(RECOMMEND + b"content-length: %d\r\n\r\n" % n_bytes)
        await client.says(b"a" * n_bytes)
        status, headers, _ = await client.hears()
        assert (status, headers["connection"]) == (413, "close")
        assert await client.is_cut()


@pytest.mark.usefixtures("short_clocks")
async def test_a_client_that_reads_no_answer_is_reset() -> None:
    async with served() as run:
        url = run.client.base_url
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((url.host, url.port))
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            asked = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 400

            async def ask_for_ever() -> None:
                while True:
                    await loop.sock_sendall(client, asked)

            with pytest.raises(ConnectionError):
                await ask_for_ever()
        assert (await run.client.get("/livez")).status_code == 200


async def test_a_trailer_adds_nothing_to_the_headers() -> None:
    async with served() as run, raw(run) as client:
        body = b"e\r\n" + QUERY + b"\r\n0\r\nx-request-id: smuggled\r\n\r\n"
        await client.says(RECOMMEND + CHUNKED + body)
        status, headers, _ = await client.hears()
        assert (status, headers["x-request-id"] == "smuggled") == (200, False)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/openapi.json", "/v1/models"])
async def test_head_answers_as_get_does_without_the_body(path: str) -> None:
    async with served() as run:
        get, head = await run.client.get(path), await run.client.head(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-type"] == get.headers["content-type"]


async def test_a_half_closed_client_that_waits_long_is_asked_whether_it_is_there() -> None:
    async with served() as run, raw(run) as client:
        run.predict.hold()
        await client.says(recommend())
        client.writer.write_eof()
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        run.predict.release()
        while (head := await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100"):
            pass
        assert head.startswith(b"HTTP/1.1 200")


async def test_a_refusal_waits_for_a_slow_answer_whatever_clock_ran_before() -> None:
    async with served(header_timeout_s=A_MOMENT_S) as run, raw(run) as client:
        run.predict.hold()
        await client.says(recommend() + b"GE")  # the clock of a second head begins
        await run.predict.wait_entered()
        await client.says(b"\x00")
        await asyncio.sleep(2 * A_MOMENT_S)
        run.predict.release()
        assert [(await client.hears())[0] for _ in range(2)] == [200, 400]
        assert await client.is_cut()
