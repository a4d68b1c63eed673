"""Client and AsyncClient: call a service from Python. Needs httpx (the extra `client`).

    with Client("http://localhost:8000") as client:
        for label in client.recommend("the white whale", k=5).labels:
            ...

Every call has one deadline, which the client sends to the service. Within it the client tries again
if that is safe and can help. Errors are in `service.remote.errors`, answers in
`service.remote.answers`; docs/client.md has examples. The client imports no code that serves or
trains.
"""

import asyncio
import random
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack

import httpx

from service.remote import calls
from service.remote.answers import Applied, Embeddings, Info, Label, Recommendation, Result
from service.remote.calls import Call, Event, NewLabel, RecommendOptions, Text
from service.remote.errors import (
    AstrolabeClientError,
    AstrolabeConnectionError,
    AstrolabeHTTPError,
    AstrolabeTimeout,
    http_error,
)
from service.remote.retries import Attempts, Retries
from service.version import __version__

T = TypeVar("T")

MAX_TIMEOUT_MS = 30_000
"""The service's default for the longest deadline; it refuses a longer one. `info()` replaces it by
the limit in force."""
GRACE_S = 0.25
"""Time beyond the deadline in which the service's own 504 can still arrive. A choice: a round trip
between continents."""
CONNECT_S = 5.0
"""Longest time to connect. A choice: a host that is up answers far sooner."""
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""Errors after which the request certainly did not reach the service."""


class Options(TypedDict, total=False):
    """The options of both clients; times are in seconds.

    `timeout_s` (default 10) is the deadline of a call over all its tries, unless the call has its
    own. The client changes labels with `admin_key`, or `api_key` if there is none; all other calls
    use `api_key`. `clock` and `spread`, which returns numbers from 0 to 1, are for tests.
    """

    api_key: str | None
    admin_key: str | None
    timeout_s: float
    retries: Retries
    clock: Callable[[], float]
    spread: Callable[[], float]


class _Calls:
    """The common part of both clients: address, keys, deadlines and the reading of answers."""

    def __init__(self, url: str, options: Options) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url is {url!r}: it must begin with http:// or https://")
        self._base_url = url.rstrip("/") + "/"
        api_key = options.get("api_key")
        self._keys = {False: api_key, True: options.get("admin_key") or api_key}
        self._timeout_s = options.get("timeout_s", 10.0)
        self._retries = options.get("retries", Retries())
        self._clock = options.get("clock", time.monotonic)
        self._spread = options.get("spread", random.random)
        self._info: Info | None = None

    def _attempts(self, call: Call[T], timeout_s: float | None) -> Attempts:
        seconds = self._timeout_s if timeout_s is None else timeout_s
        return Attempts(call.repeatable, seconds, self._retries, self._clock, self._spread)

    def _options(self, call: Call[T], left_s: float) -> dict[str, Any]:
        """The arguments for httpx of one try, with `left_s` seconds until the deadline."""
        limit_ms = self._info.limits.request_timeout_max_ms if self._info else MAX_TIMEOUT_MS
        headers = {"x-request-timeout-ms": str(max(1, min(round(left_s * 1000), limit_ms)))}
        if key := self._keys[call.admin]:
            headers["authorization"] = f"Bearer {key}"
        timeout = httpx.Timeout(left_s + GRACE_S, connect=min(left_s, CONNECT_S))
        return {
            "method": call.method,
            "url": call.path,
            "json": call.body,
            "headers": headers,
            "timeout": timeout,
        }

    def _read(self, call: Call[T], response: httpx.Response) -> T:
        """Parse the answer; raises AstrolabeHTTPError or AnswerNotUnderstood."""
        if not response.is_success:
            raise http_error(response.status_code, response.headers, response.content)
        answer = call.parse(response.content, response.headers)
        if isinstance(answer, Info):
            self._info = answer
        return answer

    def _failure(self, exc: httpx.RequestError | TimeoutError) -> AstrolabeConnectionError:
        late = isinstance(exc, httpx.TimeoutException | TimeoutError)
        kind = AstrolabeTimeout if late else AstrolabeConnectionError
        return kind(f"no answer from {self._base_url}: {str(exc) or type(exc).__name__}")


def _pool(base_url: str) -> dict[str, Any]:
    return {"base_url": base_url, "headers": {"user-agent": f"astrolabe-client/{__version__}"}}


class Client(_Calls):
    """Calls a service; its connections stay open until `close`. Threads may share it.

    Methods raise the leaves of AstrolabeClientError. The constructor raises ValueError if `url`
    does not begin with http:// or https://. `sleep` and `transport` are for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(url, options)
        self._sleep = sleep
        self._http = httpx.Client(transport=transport, **_pool(self._base_url))

    def recommend(
        self,
        texts: Text | Sequence[Text],
        *,
        item_id: str | Sequence[str | None] | None = None,
        timeout_s: float | None = None,
        **options: Unpack[RecommendOptions],
    ) -> Recommendation:
        """The best labels for one text, or for each of several."""
        return self._send(calls.recommend(texts, item_id, options), timeout_s)

    def recommend_many(
        self,
        texts: Iterable[Text],
        *,
        item_ids: Sequence[str | None] | None = None,
        timeout_s: float | None = None,
        **options: Unpack[RecommendOptions],
    ) -> Iterator[Result]:
        """Yield one result for each text, in order, from as few requests as the limits allow.

        `timeout_s` is the deadline of each request.
        """
        limits = (self._info or self.info(timeout_s=timeout_s)).limits
        for part, ids in calls.chunks(texts, item_ids, limits, options):
            yield from self._send(calls.recommend(part, ids, options), timeout_s).results

    def recommend_by_embedding(
        self,
        embedding: Sequence[float] | Sequence[Sequence[float]],
        *,
        timeout_s: float | None = None,
        **options: Unpack[RecommendOptions],
    ) -> Recommendation:
        """The best labels for one vector (dim,), or for each of several (n, dim)."""
        return self._send(calls.recommend_by_embedding(embedding, options), timeout_s)

    def embed(
        self,
        texts: Text | Sequence[Text],
        *,
        model: str | None = None,
        timeout_s: float | None = None,
    ) -> Embeddings:
        """The embedding of each text."""
        return self._send(calls.embed(texts, model), timeout_s)

    def label(
        self, label_id: str, *, model: str | None = None, timeout_s: float | None = None
    ) -> Label:
        """The label with this id; raises NoSuchThing if there is none."""
        return self._send(calls.label(label_id, model), timeout_s)

    def add_labels(self, labels: Sequence[NewLabel], *, timeout_s: float | None = None) -> Applied:
        """Add labels; needs the admin key.

        The client tries again only if the service certainly did nothing.
        """
        return self._send(calls.add_labels(labels), timeout_s)

    def update_label(
        self,
        label_id: str,
        text: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Applied:
        """Replace a label's text and metadata; keys and tries as in `add_labels`."""
        return self._send(calls.update_label(label_id, text, metadata), timeout_s)

    def remove_label(self, label_id: str, *, timeout_s: float | None = None) -> Applied:
        """Remove a label; keys and tries as in `add_labels`."""
        return self._send(calls.remove_label(label_id), timeout_s)

    def feedback(self, events: Sequence[Event], *, timeout_s: float | None = None) -> int:
        """Store what users did with answers; returns how many events; tries as in `add_labels`."""
        return self._send(calls.feedback(events), timeout_s)

    def info(self, *, model: str | None = None, timeout_s: float | None = None) -> Info:
        """The model, its bundle and the service's limits; every call asks the service."""
        return self._send(calls.info(model), timeout_s)

    def models(self, *, timeout_s: float | None = None) -> tuple[str, ...]:
        """The names of the models that the service has open."""
        return self.info(timeout_s=timeout_s).models

    def ready(self, *, timeout_s: float = 1.0) -> bool:
        """Whether the service answers requests now; False if it cannot be reached."""
        try:
            return self._once(calls.ready(), timeout_s)
        except (AstrolabeHTTPError, AstrolabeConnectionError):
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, call: Call[T], timeout_s: float | None) -> T:
        attempts = self._attempts(call, timeout_s)
        while True:
            try:
                return self._once(call, attempts.begin())
            except AstrolabeClientError as exc:
                wait_s = attempts.wait_s(exc, undone=isinstance(exc.__cause__, NOT_SENT))
            self._sleep(wait_s)

    def _once(self, call: Call[T], left_s: float) -> T:
        try:
            response = self._http.request(**self._options(call, left_s))
        except httpx.RequestError as exc:
            raise self._failure(exc) from exc
        return self._read(call, response)


class AsyncClient(_Calls):
    """Client for asyncio. Await its methods; iterate over `recommend_many` with `async for`."""

    def __init__(
        self,
        url: str,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        transport: httpx.AsyncBaseTransport | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(url, options)
        self._sleep = sleep
        self._http = httpx.AsyncClient(transport=transport, **_pool(self._base_url))

    async def recommend(
        self,
        texts: Text | Sequence[Text],
        *,
        item_id: str | Sequence[str | None] | None = None,
        timeout_s: float | None = None,
        **options: Unpack[RecommendOptions],
    ) -> Recommendation:
        """See Client.recommend."""
        return await self._send(calls.recommend(texts, item_id, options), timeout_s)

    async def recommend_many(
        self,
        texts: Iterable[Text],
        *,
        item_ids: Sequence[str | None] | None = None,
        timeout_s: float | None = None,
        **options: Unpack[RecommendOptions],
    ) -> AsyncIterator[Result]:
        """See Client.recommend_many."""
        limits = (self._info or await self.info(timeout_s=timeout_s)).limits
        for part, ids in calls.chunks(texts, item_ids, limits, options):
            answer = await self._send(calls.recommend(part, ids, options), timeout_s)
            for result in answer.results:
                yield result

    async def recommend_by_embedding(
        self,
        embedding: Sequence[float] | Sequence[Sequence[float]],
        *,
        timeout_s: float | None = None,
        **options: Unpack[RecommendOptions],
    ) -> Recommendation:
        """See Client.recommend_by_embedding."""
        return await self._send(calls.recommend_by_embedding(embedding, options), timeout_s)

    async def embed(
        self,
        texts: Text | Sequence[Text],
        *,
        model: str | None = None,
        timeout_s: float | None = None,
    ) -> Embeddings:
        """See Client.embed."""
        return await self._send(calls.embed(texts, model), timeout_s)

    async def label(
        self, label_id: str, *, model: str | None = None, timeout_s: float | None = None
    ) -> Label:
        """See Client.label."""
        return await self._send(calls.label(label_id, model), timeout_s)

    async def add_labels(
        self, labels: Sequence[NewLabel], *, timeout_s: float | None = None
    ) -> Applied:
        """See Client.add_labels."""
        return await self._send(calls.add_labels(labels), timeout_s)

    async def update_label(
        self,
        label_id: str,
        text: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Applied:
        """See Client.update_label."""
        return await self._send(calls.update_label(label_id, text, metadata), timeout_s)

    async def remove_label(self, label_id: str, *, timeout_s: float | None = None) -> Applied:
        """See Client.remove_label."""
        return await self._send(calls.remove_label(label_id), timeout_s)

    async def feedback(self, events: Sequence[Event], *, timeout_s: float | None = None) -> int:
        """See Client.feedback."""
        return await self._send(calls.feedback(events), timeout_s)

    async def info(self, *, model: str | None = None, timeout_s: float | None = None) -> Info:
        """See Client.info."""
        return await self._send(calls.info(model), timeout_s)

    async def models(self, *, timeout_s: float | None = None) -> tuple[str, ...]:
        """See Client.models."""
        return (await self.info(timeout_s=timeout_s)).models

    async def ready(self, *, timeout_s: float = 1.0) -> bool:
        """See Client.ready."""
        try:
            return await self._once(calls.ready(), timeout_s)
        except (AstrolabeHTTPError, AstrolabeConnectionError):
            return False

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _send(self, call: Call[T], timeout_s: float | None) -> T:
        attempts = self._attempts(call, timeout_s)
        while True:
            try:
                return await self._once(call, attempts.begin())
            except AstrolabeClientError as exc:
                wait_s = attempts.wait_s(exc, undone=isinstance(exc.__cause__, NOT_SENT))
            await self._sleep(wait_s)

    async def _once(self, call: Call[T], left_s: float) -> T:
        try:
            async with asyncio.timeout(left_s + GRACE_S):
                response = await self._http.request(**self._options(call, left_s))
        except (httpx.RequestError, TimeoutError) as exc:
            raise self._failure(exc) from exc
        return self._read(call, response)
