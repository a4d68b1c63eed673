"""A service on loopback whose every answer a test chooses; runs on a thread of its own."""

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

CLOSE = b"close"  # instead of an answer: hang up
SILENCE = b"silence"  # instead of an answer: nothing, ever
RESULTS = {"results": [{"labels": [{"id": "1", "text": "one", "score": 0.5}], "truncated": False}]}

# (number of the request, its JSON body) -> the bytes to answer with
Respond = Callable[[int, dict[str, object]], bytes]


def answer(status: int = 200, body: object = RESULTS, kind: str = "application/json") -> bytes:
    """A whole HTTP answer with the API's headers."""
    text = json.dumps(body).encode()
    head = (
        f"HTTP/1.1 {status} Whatever\r\nContent-Type: {kind}\r\nContent-Length: {len(text)}\r\n"
        "Server-Timing: queue;dur=0.5, total;dur=2\r\n\r\n"
    )
    return head.encode() + text


def always_ok(number: int, body: dict[str, object]) -> bytes:
    """Answer every query."""
    return answer()


@dataclass
class FakeService:
    """What the service saw."""

    respond: Respond
    url: str = ""
    bodies: list[dict[str, object]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    looks: list[str] = field(default_factory=list)
    """Heads of GET requests, which are no queries."""
    asked: threading.Event = field(default_factory=threading.Event)
    n_open: int = 0
    all_closed: threading.Event = field(default_factory=threading.Event)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it closes."""
        self.n_open += 1
        self.all_closed.clear()
        try:
            while await self._answer_one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.n_open -= 1
            if self.n_open == 0:
                self.all_closed.set()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("GET"):
            self.looks.append(head)
            writer.write(answer(body={"bundle_id": "abc", "device": "cpu"}))
            return True
        lengths = [int(line[15:]) for line in head.split("\r\n") if line.startswith("Content-Le")]
        body = json.loads(await reader.readexactly(lengths[0]))
        self.heads.append(head)
        self.bodies.append(body)
        data = self.respond(len(self.bodies), body)
        self.asked.set()
        if data == SILENCE:
            return True
        if data != CLOSE:
            writer.write(data)
        return data != CLOSE


@contextmanager
def fake_service(
    respond: Respond = always_ok, tls: ssl.SSLContext | None = None
) -> Iterator[FakeService]:
    """Serve on a free loopback port while the block runs; with `tls`, over HTTPS."""
    service = FakeService(respond)
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(
        asyncio.start_server(service.handle, "127.0.0.1", 0, backlog=1024, ssl=tls)
    )
    scheme = "https" if tls else "http"
    service.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield service
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(_close(server))
        loop.close()


async def _close(server: asyncio.Server) -> None:
    server.close()
    handlers = asyncio.all_tasks() - {asyncio.current_task()}
    for task in handlers:
        task.cancel()
    await asyncio.gather(*handlers, return_exceptions=True)
    await asyncio.sleep(0)


def refused_url() -> str:
    """An address nobody listens on."""
    with fake_service() as service:
        return service.url
