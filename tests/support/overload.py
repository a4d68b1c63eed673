"""A server whose small queue is full, and how a connection hears of it."""

import asyncio
import json

import httpx

from tests.support.live import Served
from tests.support.raw_http import Raw

SMALL = {"max_batch_tokens": 4, "max_queue_tokens": 4, "request_timeout_ms": 30_000}
"""Settings under which two short queries fill the queue."""


async def overload(run: Served) -> "list[asyncio.Task[httpx.Response]]":
    """Hold the lane, fill a `SMALL` queue behind it and have one request refused."""
    run.predict.hold()
    tasks = [run.ask()]
    await run.predict.wait_entered()
    tasks += [run.ask(), run.ask()]
    while run.batcher.waiting_tokens < 4:
        await asyncio.sleep(0.001)
    assert (await run.ask()).status_code == 429
    return tasks


async def hears_refusal(client: Raw) -> str:
    """The id under which a request on this connection was refused."""
    status, headers, problem = await client.hears()
    assert (status, headers["retry-after"]) == (429, "1")
    assert headers["content-type"] == "application/problem+json"
    assert headers["x-request-id"] == json.loads(problem)["request_id"]
    return headers["x-request-id"]
