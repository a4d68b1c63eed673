"""Both clients against answers that a test writes down, on a clock that only waiting moves."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from service.client import AsyncClient, Client
from tests.support.fakes import FakeClock

Scripted = httpx.Response | Exception
INFO: dict[str, Any] = {
    "name": "tiny",
    "bundle_id": "b" * 64,
    "version": "0.1.0",
    "n_labels": 50,
    "dim": 16,
    "index_kind": "hnsw",
    "score_kind": "probability",
    "default_k": 10,
    "default_effort": "balanced",
    "operating_points": [],
    "device": {"requested": "auto", "active": "cpu"},
    "limits": {
        "max_queries": 3,
        "max_text_chars": 100,
        "max_k": 100,
        "max_body_bytes": 400,
        "request_timeout_max_ms": 4000,
    },
}


def recommendation(n: int = 1) -> dict[str, Any]:
    """An answer of /v1/recommend to n texts, with a field that the client does not know."""
    labels = [{"id": "L1", "text": "one", "score": 0.5, "colour": "red"}]
    results = [{"labels": labels, "truncated": False} for _ in range(n)]
    return {"results": results, "bundle_id": "b", "effort": "fast", "score_kind": "cosine"}


def problem(status: int, code: str = "some_code", **headers: str) -> httpx.Response:
    """An error answer of the service."""
    document = {"status": status, "code": code, "detail": "what to change", "request_id": "r-7"}
    return httpx.Response(status, json=document, headers=headers)


class Script:
    """Gives the answers of a list one after the other and keeps what was asked."""

    def __init__(self, answers: Sequence[Scripted], seconds: float = 0.0) -> None:
        self.requests: list[httpx.Request] = []
        self.waits: list[float] = []
        self.clock = FakeClock()
        self._answers = list(answers)
        self._seconds = seconds

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.clock.advance(self._seconds)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.clock.advance(seconds)

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)

    def body(self, i: int = -1) -> Any:
        """The body of a request."""
        return json.loads(self.requests[i].content)

    def timeouts_ms(self) -> list[int]:
        """The deadline that each try named."""
        return [int(request.headers["x-request-timeout-ms"]) for request in self.requests]


Ask = Callable[..., Any]


def ask_sync(script: Script, method: str, *arguments: Any, client: Any = (), **options: Any) -> Any:
    """Call a method of a Client that talks to the script; a generator comes as a list."""
    with Client(
        "http://test/below/",
        transport=httpx.MockTransport(script),
        sleep=script.sleep,
        clock=script.clock,
        spread=lambda: 0.0,
        **dict(client),
    ) as made:
        answer = getattr(made, method)(*arguments, **options)
        return list(answer) if method == "recommend_many" else answer


def ask_async(
    script: Script, method: str, *arguments: Any, client: Any = (), **options: Any
) -> Any:
    """The same with an AsyncClient."""

    async def ask() -> Any:
        async with AsyncClient(
            "http://test/below/",
            transport=httpx.MockTransport(script),
            sleep=script.sleep_async,
            clock=script.clock,
            spread=lambda: 0.0,
            **dict(client),
        ) as made:
            answer = getattr(made, method)(*arguments, **options)
            if method == "recommend_many":
                return [result async for result in answer]
            return await answer

    return asyncio.run(ask())
