"""Unread: the kernel's word for how long a request waited, and that it counts as waiting."""

import asyncio
import socket
import sys

import pytest

from service.overload.unread import unread_s
from tests.support.fakes import SAFETY_S, running
from tests.support.raw_http import RawRequest

pytestmark = pytest.mark.anyio


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's count is Linux's")
async def test_a_request_ages_in_its_socket() -> None:
    made: asyncio.Queue[asyncio.Transport] = asyncio.Queue()

    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            made.put_nowait(transport)

    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    async with server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"request")
        transport = await made.get()
        ages = [unread_s(transport)]
        async with asyncio.timeout(SAFETY_S):
            while ages[-1] < 0.02:
                await asyncio.sleep(0.002)
                ages.append(unread_s(transport))
        assert ages == sorted(ages)
        transport.abort()
        writer.close()


async def test_where_there_is_no_such_count_nothing_is_known() -> None:
    one, other = socket.socketpair()  # not TCP
    with other:
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
            asyncio.Protocol, one
        )
        assert unread_s(transport) == 0.0
        transport.abort()


async def test_time_unread_is_taken_from_the_deadline_and_counted() -> None:
    async with running() as service:
        request = RawRequest(service, (b"x-request-timeout-ms", b"1000"), unread_s=3.0)
        request.body(b'{"query":"a"}')
        assert await request.status() == 504
        seconds = await service.metric(
            'astrolabe_request_seconds_sum{route="/v1/recommend",status="504"}'
        )
    assert seconds >= 3.0
