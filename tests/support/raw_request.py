"""One request as ASGI messages, which a test sends piece by piece."""

import asyncio
from typing import Any

from service.overload.unread import UNREAD
from tests.support.fakes import SAFETY_S, Running


class RawRequest:
    """A POST /v1/recommend whose body and hang-up a test sends piece by piece."""

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
        self.inbox.put_nowait({"type": "http.request", "body": part, "more_body": more})

    def hang_up(self) -> None:
        self.inbox.put_nowait({"type": "http.disconnect"})

    async def status(self) -> int:
        async with asyncio.timeout(SAFETY_S):
            await self.task
        return int(self.sent[0]["status"])

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
