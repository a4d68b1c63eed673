"""The hot route: /v1/recommend as two bare ASGI endpoints over one path to the batcher.

The body is parsed and validated once and the answer is serialised once; FastAPI only documents
these endpoints (see `service.api.routes`). One text is a list of one from here on, and a vector is
a text that is encoded already.
"""

import asyncio
import operator
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import orjson
from starlette.types import Receive, Scope, Send

from service.core.batching.job import Answer
from service.core.labels.labels import Label
from service.core.live_recall import LiveRecall
from service.core.types import FilterPlan, LabelFilter, Prediction, Query
from service.errors import InvalidValue
from service.gate.bodies import check_json, parse, query_string, read_body, validate
from service.gate.exchange import EXCHANGE, Exchange
from service.gate.watch import Watch
from service.serving.answer_cache import CachedAnswer
from service.serving.deployment import Deployment
from service.serving.request_models import ItemRequest, LabelsRequest, RecommendRequest
from service.serving.serving import Serving

SCORE_DECIMALS: Final = 6
PINNED: Final = b"x-bundle"


class Recommend:
    """Endpoints of /v1/recommend, bound to what they answer from."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def post(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer POST /v1/recommend."""
        exchange: Exchange = scope[EXCHANGE]
        check_json(exchange.headers.get(b"content-type", b""))
        check_room(self._serving, exchange)
        with Watch(receive, exchange.left_s, exchange.reply) as watch:
            asked = await read_body(receive)
            raw = parse(asked)
            deployment = chosen(self._serving, exchange, raw)
            if deployment.cache and await self._repeat(exchange, deployment, asked, send):
                return
            request = validate(deployment.request_models.body, raw)
            texts = [request.query] if isinstance(request.query, str) else request.query
            exchange.queries = texts
            queries = _queries(request, texts)
            await self._answer(exchange, deployment, request, queries, watch, send, asked)

    async def get(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer GET /v1/recommend."""
        exchange: Exchange = scope[EXCHANGE]
        check_room(self._serving, exchange)
        raw = query_string(scope["query_string"])
        deployment = chosen(self._serving, exchange, raw)
        given = validate(deployment.request_models.parameters, raw)
        request = deployment.request_models.body.model_construct(
            query=given.q,
            include=["text"],
            **given.model_dump(exclude={"q"}),
        )
        exchange.queries = [given.q]
        with Watch(receive, exchange.left_s, exchange.reply) as watch:
            queries = _queries(request, exchange.queries)
            await self._answer(exchange, deployment, request, queries, watch, send)

    async def post_embedding(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer POST /v1/recommend/by-embedding."""
        exchange: Exchange = scope[EXCHANGE]
        check_json(exchange.headers.get(b"content-type", b""))
        check_room(self._serving, exchange)
        with Watch(receive, exchange.left_s, exchange.reply) as watch:
            raw = parse(await read_body(receive))
            deployment = chosen(self._serving, exchange, raw)
            request = validate(deployment.request_models.by_embedding, raw)
            vectors = _vectors(request.embedding)
            k, effort, strict = request.k, request.effort, request.effort_strict
            wanted = label_filter(request)
            queries = [Query("", k, effort, None, strict, wanted, vector) for vector in vectors]
            await self._answer(exchange, deployment, request, queries, watch, send)

    async def _answer(
        self,
        exchange: Exchange,
        deployment: Deployment,
        request: LabelsRequest,
        queries: list[Query],
        watch: Watch,
        send: Send,
        asked: bytes | None = None,
    ) -> None:
        serving, engine = self._serving, deployment.engine
        catalogue_seq = engine.catalogue_seq
        future = deployment.batcher.submit(queries, exchange.deadline_s, exchange.bulk)
        answer = exchange.answer = await watch.answer(future)
        effort = answer.queries[0].effort
        raw = request.scores == "raw"
        results = [_result(deployment, request, item) for item in answer.predictions]
        if request.explain:
            await _explain(deployment, answer, results)
        content = {
            "results": results,
            "bundle_id": deployment.bundle_id,
            "effort": effort,
            "score_kind": engine.raw_score_kind if raw else engine.calibration.score_kind,
        }
        lowered = effort != request.effort
        if lowered:
            content["effort_asked"] = request.effort
        body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
        total_s = serving.clock() - exchange.started_s
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"server-timing", server_timing(answer, total_s)),
        ]
        if lowered:
            headers.append((b"cache-control", b"no-store"))  # what load did should not outlive it
        elif asked is not None and deployment.cache is not None and not request.explain:
            deployment.cache.put(asked, CachedAnswer(body, effort, len(queries)), catalogue_seq)
        await exchange.respond(send, 200, headers, body)
        serving.telemetry.answered(effort, len(queries), total_s)
        serving.telemetry.served(answer.predictions)
        if deployment.live_recall is not None:
            _offer(deployment.live_recall, answer)

    async def _repeat(
        self, exchange: Exchange, deployment: Deployment, asked: bytes, send: Send
    ) -> bool:
        """Answer from the cache where it knows the body."""
        cache, serving = deployment.cache, self._serving
        assert cache is not None
        found = cache.get(asked, deployment.engine.catalogue_seq)
        serving.telemetry.looked_up("miss" if found is None else "hit")
        if found is None:
            return False
        total_s = serving.clock() - exchange.started_s
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(found.body)),
            (b"server-timing", b"cache;desc=hit, total;dur=%.3f" % (total_s * 1e3)),
        ]
        await exchange.respond(send, 200, headers, found.body)
        serving.telemetry.answered(found.effort, found.n_queries, total_s)
        return True


def check_room(serving: Serving, exchange: Exchange) -> None:
    """Refuse before the body is read, where that is sure to have no room; raises OverloadError.

    Not where the body could choose another bundle, or be known to the cache of answers.
    """
    only = serving.deployments.only
    if only is not None and only.cache is None:
        only.batcher.check_room(exchange.deadline_s, exchange.bulk)


def chosen(serving: Serving, exchange: Exchange, raw: Any) -> Deployment:
    """The deployment that a request's `model` and X-Bundle mean.

    Raises ModelUnknown, NoSuchBundle, InvalidValue. Submit to it before the next await.
    """
    name = raw.get("model") if isinstance(raw, Mapping) else None
    if not isinstance(name, str):
        name = None  # absent, or of a type that validation will refuse
    return serving.deployments.choose(name, exchange.headers.get(PINNED), exchange.request_id)


def label_filter(request: LabelsRequest) -> LabelFilter | None:
    """The filter that a request asks for, None where it lets every label through."""
    allow, deny, where = request.allow, request.deny, request.where
    if allow is None and not deny and not where:
        return None
    values = {
        field: tuple(value) if isinstance(value, list) else (value,)
        for field, value in (where or {}).items()
    }
    return LabelFilter(None if allow is None else tuple(allow), tuple(deny or ()), values)


def _queries(request: RecommendRequest, texts: list[str]) -> list[Query]:
    k, effort, strict = request.k, request.effort, request.effort_strict
    wanted = label_filter(request)
    item_id = request.item_id if isinstance(request, ItemRequest) else None
    if item_id is None:  # the hot path
        return [Query(text, k, effort, None, strict, wanted) for text in texts]
    if isinstance(item_id, str) is not isinstance(request.query, str):
        raise InvalidValue("item_id must be like query: one for one text, a list for a list")
    item_ids = [item_id] if isinstance(item_id, str) else item_id
    if len(item_ids) != len(texts):
        raise InvalidValue(
            f"item_id holds {len(item_ids)} ids for {len(texts)} texts: give one for each, or null"
        )
    return [
        Query(text, k, effort, item, strict, wanted)
        for text, item in zip(texts, item_ids, strict=True)
    ]


def _vectors(given: Sequence[float] | Sequence[Sequence[float]]) -> np.ndarray[Any, Any]:
    with np.errstate(over="ignore"):
        vectors = np.atleast_2d(np.asarray(given, np.float64)).astype(np.float32)
    if not np.isfinite(vectors).all():
        raise InvalidValue("embedding holds a number that is too large for 32 bits: scale it")
    return vectors


def _result(
    deployment: Deployment, request: LabelsRequest, prediction: Prediction
) -> dict[str, Any]:
    served = prediction.scores
    if request.scores == "raw" and prediction.raw_scores is not None:
        served = prediction.raw_scores
    rows, scores = prediction.rows.tolist(), served.tolist()
    if request.min_score is not None:
        kept = bisect_right(scores, -request.min_score, key=operator.neg)  # scores fall
        rows, scores = rows[:kept], scores[:kept]
    label_of = deployment.engine.catalogue.label
    include = request.include
    labels: list[dict[str, Any]]
    if include == ["text"]:  # the default, and the hot path
        labels = [
            {"id": label.label_id, "text": label.text, "score": round(score, SCORE_DECIMALS)}
            for label, score in zip(map(label_of, rows), scores, strict=True)
        ]
    else:
        labels = [
            _label(label_of(row), score, include) for row, score in zip(rows, scores, strict=True)
        ]
    result: dict[str, Any] = {"labels": labels, "truncated": prediction.truncated}
    if "embedding" in include:
        result["embedding"] = prediction.embedding
    if prediction.plan is not None:
        result["plan"] = _plan(prediction.plan)
    return result


def _offer(live_recall: LiveRecall, answer: Answer) -> None:
    for query, prediction in zip(answer.queries, answer.predictions, strict=True):
        if query.label_filter is None and query.item_id is None:
            live_recall.offer(prediction.embedding, prediction.rows, query.effort, query.k)


def _plan(plan: FilterPlan) -> dict[str, Any]:
    return {
        "kind": plan.kind,
        "open": plan.n_open,
        "labels": plan.n_rows,
        "unknown_ids": plan.n_unknown,
    }


async def _explain(deployment: Deployment, answer: Answer, results: list[dict[str, Any]]) -> None:
    """Add an explanation to each result."""
    engine, timings = deployment.engine, answer.timings
    point = next(
        point
        for point in engine.manifest.operating_points
        if point.name == answer.queries[0].effort
    )
    embeddings = np.stack([item.embedding for item in answer.predictions])
    # The memory is searched once more, which is search work: not on the event loop.
    neighbours = await asyncio.to_thread(engine.neighbours, embeddings, point.name)
    stages = {
        "queue": answer.queue_s,
        "tokenize": timings.tokenize_s,
        "encode": timings.encode_s,
        "search": timings.search_s,
    }
    for i, (result, prediction) in enumerate(zip(results, answer.predictions, strict=True)):
        scores = [label["score"] for label in result["labels"]]
        raw = prediction.scores if prediction.raw_scores is None else prediction.raw_scores
        result["explanation"] = {
            "point": point.model_dump(include={"name", "recall_at_10", "p_at_1", "search_us_p50"}),
            "margins": [round(high - low, SCORE_DECIMALS) for high, low in pairwise(scores)],
            "raw_scores": [round(score, SCORE_DECIMALS) for score in raw.tolist()[: len(scores)]],
            "neighbours": None if neighbours is None else neighbours[i],
            "stages_ms": {name: round(seconds * 1e3, 3) for name, seconds in stages.items()},
            "batch_queries": answer.batch_queries,
        }


def _label(label: Label, score: float, include: Sequence[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": label.label_id}
    if "text" in include:
        entry["text"] = label.text
    if "metadata" in include:
        entry["metadata"] = label.metadata
    entry["score"] = round(score, SCORE_DECIMALS)
    return entry


def server_timing(answer: Answer, total_s: float) -> bytes:
    """The Server-Timing header of an answer."""
    timings = answer.timings
    return (
        f"queue;dur={answer.queue_s * 1e3:.3f}, tokenize;dur={timings.tokenize_s * 1e3:.3f}, "
        f"encode;dur={timings.encode_s * 1e3:.3f}, search;dur={timings.search_s * 1e3:.3f}, "
        f"total;dur={total_s * 1e3:.3f}"
    ).encode()
