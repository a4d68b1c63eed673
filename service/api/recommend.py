"""The hot route: /v1/recommend as two bare ASGI endpoints over one path to the batcher.

The body is parsed and validated once and the answer is serialised once; FastAPI only documents
these endpoints (see `service.api.routes`). One text is a list of one from here on.
"""

import operator
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

import orjson
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from service.api.middleware import EXCHANGE, Exchange
from service.api.schemas import ItemRequest, RecommendParameters, RecommendRequest
from service.api.serving import Serving
from service.api.watch import Watch
from service.core.batcher import Answer
from service.core.labels import Label
from service.core.types import Prediction, Query
from service.errors import (
    Abandoned,
    InvalidValue,
    MalformedRequest,
    PayloadTooLarge,
    RequestError,
    UnsupportedMediaType,
)

SCORE_DECIMALS = 6
MAX_FIELDS = 32
"""Far above what is known; a body of 100,000 unknown fields would block the loop for 0.4 s."""


class Recommend:
    """Endpoints of /v1/recommend, bound to what they answer from."""

    def __init__(
        self,
        serving: Serving,
        body_model: type[RecommendRequest],
        parameters_model: type[RecommendParameters],
    ) -> None:
        self._serving = serving
        self._body_model = body_model
        self._parameters_model = parameters_model
        engine = serving.engine
        self._bundle_id = engine.manifest.bundle_id
        self._score_kind = engine.calibration.score_kind

    async def post(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer POST /v1/recommend."""
        exchange: Exchange = scope[EXCHANGE]
        _check_json(exchange.headers.get(b"content-type", b""))
        with Watch(receive, exchange.timeout_s) as watch:
            raw = _parse(await _read_body(receive))
            try:
                request = self._body_model.model_validate(raw)
            except ValidationError as exc:
                raise _refusal(exc, raw) from None
            await self._answer(exchange, request, watch, send)

    async def get(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer GET /v1/recommend."""
        exchange: Exchange = scope[EXCHANGE]
        raw = _query_string(scope["query_string"])
        try:
            given = self._parameters_model.model_validate(raw)
        except ValidationError as exc:
            raise _refusal(exc, raw) from None
        request = self._body_model.model_construct(
            query=given.q,
            include=["text"],
            **given.model_dump(exclude={"q"}),
        )
        with Watch(receive, exchange.timeout_s) as watch:
            await self._answer(exchange, request, watch, send)

    async def _answer(
        self, exchange: Exchange, request: RecommendRequest, watch: Watch, send: Send
    ) -> None:
        texts = [request.query] if isinstance(request.query, str) else request.query
        exchange.queries = texts
        serving = self._serving
        future = serving.batcher.submit(
            _queries(request, texts), exchange.started_s + exchange.timeout_s
        )
        answer = await watch.answer(future)
        effort = answer.queries[0].effort
        content = {
            "results": [self._result(request, item) for item in answer.predictions],
            "bundle_id": self._bundle_id,
            "effort": effort,
            "score_kind": self._score_kind,
        }
        lowered = effort != request.effort
        if lowered:
            content["effort_asked"] = request.effort
        body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
        total_s = serving.clock() - exchange.started_s
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"server-timing", _server_timing(answer, total_s)),
        ]
        if lowered:
            headers.append((b"cache-control", b"no-store"))  # what load did should not outlive it
        await exchange.respond(send, 200, headers, body)
        serving.telemetry.answered(effort, len(texts), total_s)

    def _result(self, request: RecommendRequest, prediction: Prediction) -> dict[str, Any]:
        rows, scores = prediction.rows.tolist(), prediction.scores.tolist()
        if request.min_score is not None:
            kept = bisect_right(scores, -request.min_score, key=operator.neg)  # scores fall
            rows, scores = rows[:kept], scores[:kept]
        store = self._serving.engine.labels
        include = request.include
        labels: list[dict[str, Any]]
        if include == ["text"]:  # the default, and the hot path
            labels = [
                {"id": label.label_id, "text": label.text, "score": round(score, SCORE_DECIMALS)}
                for label, score in zip(map(store.__getitem__, rows), scores, strict=True)
            ]
        else:
            labels = [
                _label(store[row], score, include) for row, score in zip(rows, scores, strict=True)
            ]
        result: dict[str, Any] = {"labels": labels, "truncated": prediction.truncated}
        if "embedding" in include:
            result["embedding"] = prediction.embedding
        return result


def _queries(request: RecommendRequest, texts: list[str]) -> list[Query]:
    k, effort, strict = request.k, request.effort, request.effort_strict
    item_id = request.item_id if isinstance(request, ItemRequest) else None
    if item_id is None:  # the hot path
        return [Query(text, k, effort, None, strict) for text in texts]
    if isinstance(item_id, str) is not isinstance(request.query, str):
        raise InvalidValue("item_id must be like query: one for one text, a list for a list")
    item_ids = [item_id] if isinstance(item_id, str) else item_id
    if len(item_ids) != len(texts):
        raise InvalidValue(
            f"item_id holds {len(item_ids)} ids for {len(texts)} texts: give one for each, or null"
        )
    return [
        Query(text, k, effort, item, strict) for text, item in zip(texts, item_ids, strict=True)
    ]


def _label(label: Label, score: float, include: Sequence[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": label.label_id}
    if "text" in include:
        entry["text"] = label.text
    if "metadata" in include:
        entry["metadata"] = label.metadata
    entry["score"] = round(score, SCORE_DECIMALS)
    return entry


async def _read_body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Abandoned("the client closed the connection while sending")
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _check_json(content_type: bytes) -> None:
    if content_type == b"application/json":
        return
    if content_type.split(b";")[0].strip().lower() != b"application/json":
        raise UnsupportedMediaType("send JSON, with the header Content-Type: application/json")


def _parse(body: bytes) -> Any:
    # orjson and not pydantic's own parser: that one takes NaN and Infinity, which are not JSON.
    try:
        raw = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise MalformedRequest(f"the body is not JSON in UTF-8: {exc}") from None
    if isinstance(raw, dict) and len(raw) > MAX_FIELDS:
        raise InvalidValue(f"the body has {len(raw)} fields: most of them are not known")
    return raw


def _query_string(raw: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            raw.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError as exc:
        raise MalformedRequest(f"the query string cannot be read: {exc}") from None
    values = dict(pairs)
    if len(values) != len(pairs):
        raise InvalidValue("a parameter is given more than once: give each one once")
    return values


def _server_timing(answer: Answer, total_s: float) -> bytes:
    timings = answer.timings
    return (
        f"queue;dur={answer.queue_s * 1e3:.3f}, tokenize;dur={timings.tokenize_s * 1e3:.3f}, "
        f"encode;dur={timings.encode_s * 1e3:.3f}, search;dur={timings.search_s * 1e3:.3f}, "
        f"total;dur={total_s * 1e3:.3f}"
    ).encode()


def _refusal(exc: ValidationError, raw: Any) -> RequestError:
    """The first fault as an error that names the place and what to change."""
    faults = exc.errors(include_url=False, include_context=True)
    for name in ("query", "item_id"):
        if isinstance(raw, Mapping) and isinstance(raw.get(name), list):
            # text or list: where a list was sent, what is wrong with it as a text is noise
            faults = [fault for fault in faults if fault["loc"] != (name, "constrained-str")]
    fault = faults[0]
    where = _place(fault["loc"])
    kind, context, value = fault["type"], fault.get("ctx", {}), fault["input"]
    if kind == "string_too_long":
        limit = context["max_length"]
        return PayloadTooLarge(f"{where} has {len(value)} characters, the limit is {limit}")
    if kind == "too_long" and where == "query":
        limit = context["max_length"]
        return PayloadTooLarge(f"query holds {len(value)} texts, the limit is {limit}: send fewer")
    if kind in ("string_too_short", "string_pattern_mismatch"):
        return InvalidValue(f"{where} holds no visible character: send some text")
    if kind == "extra_forbidden" and where == "item_id":
        return InvalidValue("this bundle has no item filter: remove item_id")
    if kind == "extra_forbidden":
        return InvalidValue(f"{where} is not a known field: remove it")
    if kind == "missing":
        return InvalidValue(f"{where} is missing: it is required")
    if kind == "model_type":
        return InvalidValue('the body must be a JSON object such as {"query": "text"}')
    return InvalidValue(f"{where}: {fault['msg']}")


def _place(location: tuple[int | str, ...]) -> str:
    """`("query", "list[...]", 3)` as `query[3]`: the names of union branches are left out."""
    name = str(location[0]) if location else "the body"
    return name + "".join(f"[{part}]" for part in location[1:] if isinstance(part, int))
