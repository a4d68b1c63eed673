"""JsonRoute: a FastAPI route whose JSON body is read as all others are.

FastAPI would read it with Python's own parser, which takes NaN and repeated names.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from service.gate.bodies import check_json, parse, read_body
from service.gate.exchange import EXCHANGE


class JsonRoute(APIRoute):
    """A route of FastAPI; one that takes a body checks its headers and parses it strictly.

    Requests that are no GET hold `turn` from before they are parsed until they are answered.
    """

    turn: AbstractAsyncContextManager[Any] = nullcontext()

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """What answers a request; it raises what `service.gate.bodies` raises."""
        handle = super().get_route_handler()
        if self.methods == {"GET"}:
            return handle

        async def handle_in_turn(request: Request) -> Response:
            if self.body_field is None:
                async with self.turn:
                    return await handle(request)
            check_json(request.scope[EXCHANGE].headers)
            body = await read_body(request.receive)
            async with self.turn:
                parsed = _ParsedRequest(request, body, parse(body))
                await asyncio.sleep(0)  # other answers go first; then the body is validated
                return await handle(parsed)

        return handle_in_turn


class _ParsedRequest(Request):
    """A request whose body has been read and parsed."""

    def __init__(self, request: Request, body: bytes, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        # Older FastAPI (0.140) takes null for a body that is missing; any other value that is no
        # object is refused for what it is.
        self._raw, self._value = body, False if value is None else value

    async def body(self) -> bytes:
        return self._raw

    async def json(self) -> Any:
        return self._value
