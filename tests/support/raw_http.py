"""Clients that send what a test tells them, piece by piece: over a socket, and in process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from service.overload.unread import UNREAD
from tests.support.fakes import SAFETY_S, Running
from tests.support.live import Served

RECOMMEND = b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
"""How a query begins; the rest of its headers is the test's."""


def recommend(query: str = "a", *headers: bytes, version: bytes = b"1.1") -> bytes:
    """A whole query, by default of two tokens."""
    body = b'{"query": "%s"}' % query.encode()
    lines = (b"content-length: %d" % len(body), *headers)
    start = RECOMMEND.replace(b"HTTP/1.1", b"HTTP/" + version)
    return start + b"\r\n".join(lines) + b"\r\n\r\n" + body


class Raw:
    """A client that says what it is told, byte for byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def says(self, data: bytes) -> None:
        """Send these bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def hears(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, body

    async def is_cut(self) -> bool:
        """Wait for the end of the connection; whether it came without another byte."""
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True


@asynccontextmanager
async def raw(run: Served) -> AsyncIterator[Raw]:
    """One connection to a server, closed at the end."""
    url = run.client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()


class RawRequest:
    """One ASGI call whose body and hang-up a test sends piece by piece."""

    def __init__(
        self, service: Running, *headers: tuple[bytes, bytes], unread_s: float = 0.0
    ) -> None:
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/recommend",
            "raw_path": b"/v1/recommend",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), *headers],
            UNREAD: unread_s,
        }
        self.task = asyncio.create_task(service.app(scope, self.inbox.get, self._send))  # type: ignore[arg-type]

    def body(self, part: bytes, more: bool = False) -> None:
        """Send a piece of the body."""
        self.inbox.put_nowait({"type": "http.request", "body": part, "more_body": more})

    def hang_up(self) -> None:
        """Leave without waiting for an answer."""
        self.inbox.put_nowait({"type": "http.disconnect"})

    async def status(self) -> int:
        """Status of the answer."""
        async with asyncio.timeout(SAFETY_S):
            await self.task
        return int(self.sent[0]["status"])

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
