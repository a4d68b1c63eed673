"""Endpoint: what every route that computes does, written once.

An endpoint reads a request, submits its queries to the batcher, waits, sends the answer and counts
it. A subclass says how a request becomes queries and how an answer becomes bytes. Endpoints are
plain ASGI applications: FastAPI describes them in OpenAPI and takes no part in answering.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Generic, TypeVar

import orjson
from starlette.types import Receive, Scope, Send

from service.core.batching.job import Answer
from service.core.live_recall import LiveRecall
from service.core.types import Query
from service.gate.bodies import check_json, invisible, parse, read_body
from service.gate.exchange import EXCHANGE, Exchange
from service.gate.gate import too_late
from service.gate.problems import Headers
from service.serving.answer_cache import WholeAnswer
from service.serving.deployment import Deployment
from service.serving.query_texts import HistoryRequest
from service.serving.serving import Serving

BUNDLE_HEADER: Final = b"x-bundle"
NO_STORE: Final = (b"cache-control", b"no-store")
"""Marks an answer that no cache may store, neither a client's nor the service's own."""

Request = TypeVar("Request")


class Endpoint(ABC, Generic[Request]):
    """One route that computes, bound to the open bundles.

    `texts` names the field or tensor of its texts, for errors. `logs_answers` says whether a sample
    of its answers goes to the log of answers, which must know their form.
    """

    texts: ClassVar[str] = "query"
    logs_answers: ClassVar[bool] = False

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Check the headers before the body is read; raises UnsupportedMediaType."""
        check_json(headers)

    async def read(self, scope: Scope, receive: Receive) -> tuple[bytes, Any]:
        """The request's bytes, by which the cache knows it, and the JSON value in them.

        Raises Abandoned, MalformedRequest, PayloadTooLarge.
        """
        body = await read_body(receive)
        return body, parse(body)

    def deployment(self, scope: Scope, value: Any) -> Deployment:
        """The open bundle that a request's `model` and X-Bundle header name.

        Raises ModelUnknown, NoSuchBundle, InvalidValue.
        """
        name = value.get("model") if isinstance(value, Mapping) else None
        if not isinstance(name, str):
            name = None  # absent, or of a type that validation will refuse
        return self._choose(scope[EXCHANGE], name)

    @abstractmethod
    def queries(
        self, exchange: Exchange, deployment: Deployment, value: Any
    ) -> tuple[Request, list[Query]]:
        """The validated request and its queries; raises RequestError.

        Puts the texts into `exchange.queries`, for the log.
        """

    @abstractmethod
    async def write(
        self, deployment: Deployment, request: Request, answer: Answer
    ) -> tuple[Headers, bytes]:
        """The answer's own headers and its body."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange: Exchange = scope[EXCHANGE]
        self.check(exchange.headers)
        self._check_room(exchange)
        try:
            async with asyncio.timeout(exchange.left_s):
                key, value = await self.read(scope, receive)
                # No await from here to `submit`: the deployment could be closed meanwhile.
                deployment = self.deployment(scope, value)
                whole = self._look_up(deployment, key)
                if whole is None:
                    request, queries = self.queries(exchange, deployment, value)
                    catalogue_seq = deployment.engine.catalogue_seq
                    future = deployment.batcher.submit(queries, exchange.deadline_s, exchange.bulk)
                    answer = await exchange.wait(future)
                    self._check_tokens(answer)
        except TimeoutError:
            raise too_late(exchange) from None
        if whole is None:
            effort = answer.queries[0].effort
            headers, body = await self.write(deployment, request, answer)
            if effort != queries[0].effort:
                headers.append(NO_STORE)  # the effects of load should not outlive it
            searched = answer.queries[0].k > 0
            whole = WholeAnswer(headers, body, effort if searched else None, len(queries))
            if deployment.cache is not None and NO_STORE not in headers:
                deployment.cache.put((self, key), whole, catalogue_seq)
        await self._send(exchange, deployment, whole, send)

    def _choose(self, exchange: Exchange, name: str | None) -> Deployment:
        bundle = exchange.headers.get(BUNDLE_HEADER)
        return self._serving.deployments.choose(name, bundle, exchange.request_id)

    def _check_room(self, exchange: Exchange) -> None:
        """Refuse a request before its body is read, if the queue is full; raises OverloadError.

        Only the body tells which of several bundles is meant, and whether the cache has an answer.
        """
        only = self._serving.deployments.only
        if only is not None and only.cache is None:
            only.batcher.check_room(exchange.deadline_s, exchange.bulk)

    def _check_tokens(self, answer: Answer) -> None:
        """Raise InvalidValue if a text left no token, which only the tokenizer can tell."""
        for position, item in enumerate(answer.predictions):
            if item.tokenless:
                where = self.texts if len(answer.queries) == 1 else f"{self.texts}[{position}]"
                raise invisible(where)

    def _look_up(self, deployment: Deployment, key: bytes) -> WholeAnswer | None:
        """The cached answer to these bytes at this endpoint."""
        if deployment.cache is None:
            return None
        whole = deployment.cache.get((self, key), deployment.engine.catalogue_seq)
        self._serving.telemetry.looked_up("miss" if whole is None else "hit")
        return whole

    async def _send(
        self, exchange: Exchange, deployment: Deployment, whole: WholeAnswer, send: Send
    ) -> None:
        """Send an answer and count it; one from the cache has no `exchange.answer`."""
        serving, answer = self._serving, exchange.answer
        total_s = serving.clock() - exchange.started_s
        headers = [
            *whole.headers,
            (b"content-length", b"%d" % len(whole.body)),
            (b"server-timing", _server_timing(answer, total_s)),
        ]
        await exchange.respond(send, 200, headers, whole.body)
        serving.telemetry.answered(whole.effort, whole.n_queries, total_s)
        if self.logs_answers and serving.feedback is not None:
            serving.feedback.offer(exchange.request_id, exchange.queries, whole.body)
        if answer is not None and whole.effort is not None:
            serving.telemetry.served(answer.predictions)
            if deployment.live_recall is not None:
                _offer(deployment.live_recall, answer)


def as_json(content: dict[str, Any]) -> tuple[Headers, bytes]:
    """Headers and body of an answer in JSON; numpy arrays become lists."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return [(b"content-type", b"application/json")], body


def as_list(texts: Any) -> list[Any]:
    """A field that holds one text or history, or a list of these, as a list."""
    return texts if isinstance(texts, list) else [texts]


def as_query(text: str | HistoryRequest, **fields: Any) -> Query:
    """The query of one text, or of one history."""
    if isinstance(text, str):
        return Query(text, **fields)
    return Query("", history=text.history, **fields)


def as_shown(texts: Sequence[str | HistoryRequest]) -> list[str]:
    """Each text as the log shows it: a history has one text a line."""
    return [text if isinstance(text, str) else "\n".join(text.texts) for text in texts]


def _offer(live_recall: LiveRecall, answer: Answer) -> None:
    for query, prediction in zip(answer.queries, answer.predictions, strict=True):
        if query.label_filter is None and query.item_id is None and not query.diversity:
            rows = prediction.rows if prediction.searched is None else prediction.searched
            live_recall.offer(prediction.embedding, rows, query.effort, query.k)


def _server_timing(answer: Answer | None, total_s: float) -> bytes:
    """The Server-Timing header, in milliseconds; None stands for an answer from the cache."""
    if answer is None:
        return b"cache;desc=hit, total;dur=%.3f" % (total_s * 1e3)
    stages = {"queue": answer.queue_s, **answer.timings.stages, "total": total_s}
    return ", ".join(f"{name};dur={s * 1e3:.3f}" for name, s in stages.items()).encode()
