"""/v1/recommend: texts, or vectors, to the best labels. This is the hot route."""

import asyncio
import operator
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from starlette.types import Receive, Scope

from service.api.endpoint import NO_STORE, Endpoint, as_json, as_list
from service.core.batching.job import Answer
from service.core.index.protocol import MAX_QUERY_LENGTH
from service.core.labels.labels import Label
from service.core.types import FilterPlan, LabelFilter, Prediction, Query
from service.errors import InvalidValue
from service.gate.bodies import query_string, validate
from service.gate.exchange import Exchange
from service.gate.problems import Headers
from service.serving.deployment import Deployment
from service.serving.request_models import ItemRequest, LabelsRequest, RecommendRequest

SCORE_DECIMALS: Final = 6


class Recommend(Endpoint[LabelsRequest]):
    """POST /v1/recommend."""

    logs_answers = True

    def queries(
        self, exchange: Exchange, deployment: Deployment, value: Any
    ) -> tuple[LabelsRequest, list[Query]]:
        """One query for each text."""
        request = validate(deployment.request_models.body, value)
        exchange.queries = as_list(request.query)
        return request, _queries(request, exchange.queries)

    async def write(
        self, deployment: Deployment, request: LabelsRequest, answer: Answer
    ) -> tuple[Headers, bytes]:
        """The labels of each query, best first."""
        engine, effort = deployment.engine, answer.queries[0].effort
        results = [_result(deployment, request, item) for item in answer.predictions]
        if request.explain:
            await _explain(deployment, answer, results)
        raw = request.scores == "raw"
        content = {
            "results": results,
            "bundle_id": deployment.bundle_id,
            "effort": effort,
            "score_kind": engine.raw_score_kind(effort) if raw else engine.calibration.score_kind,
        }
        if effort != request.effort:
            content["effort_asked"] = request.effort
        headers, body = as_json(content)
        if request.explain:
            headers.append(NO_STORE)  # the stage times are those of this one request
        return headers, body


class RecommendOne(Recommend):
    """GET /v1/recommend: one text in the query string."""

    texts = "q"

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """A query string needs no content type."""

    async def read(self, scope: Scope, receive: Receive) -> tuple[bytes, Any]:
        """The query string and its parameters; raises MalformedRequest, InvalidValue."""
        raw: bytes = scope["query_string"]
        return raw, query_string(raw)

    def queries(
        self, exchange: Exchange, deployment: Deployment, value: Any
    ) -> tuple[LabelsRequest, list[Query]]:
        """One query for the text."""
        models = deployment.request_models
        parameters = validate(models.parameters, value)
        fields = parameters.model_dump(exclude={"q"})
        request = models.body.model_construct(query=parameters.q, include=["text"], **fields)
        exchange.queries = [parameters.q]
        return request, _queries(request, exchange.queries)


class RecommendByEmbedding(Recommend):
    """POST /v1/recommend/by-embedding: vectors in place of texts."""

    def queries(
        self, exchange: Exchange, deployment: Deployment, value: Any
    ) -> tuple[LabelsRequest, list[Query]]:
        """One query for each vector."""
        request = validate(deployment.request_models.by_embedding, value)
        k, effort, strict = request.k, request.effort, request.effort_strict
        label_filter = _label_filter(request)
        vectors = _vectors(request.embedding)
        return request, [Query("", k, effort, None, strict, label_filter, v) for v in vectors]


def _label_filter(request: LabelsRequest) -> LabelFilter | None:
    """The filter of a request; None if it lets every label through."""
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
    label_filter = _label_filter(request)
    item_id = request.item_id if isinstance(request, ItemRequest) else None
    if item_id is None:  # the hot path
        return [Query(text, k, effort, None, strict, label_filter) for text in texts]
    if isinstance(item_id, str) is not isinstance(request.query, str):
        raise InvalidValue("item_id must be like query: one for one text, a list for a list")
    item_ids = [item_id] if isinstance(item_id, str) else item_id
    if len(item_ids) != len(texts):
        raise InvalidValue(
            f"item_id holds {len(item_ids)} ids for {len(texts)} texts: give one for each, or null"
        )
    return [
        Query(text, k, effort, item, strict, label_filter)
        for text, item in zip(texts, item_ids, strict=True)
    ]


def _vectors(embedding: Sequence[float] | Sequence[Sequence[float]]) -> NDArray[np.float32]:
    """One vector or several, as rows (n, dim); raises InvalidValue for one that is too long."""
    rows = np.atleast_2d(np.asarray(embedding, np.float64))
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(rows, axis=1)
    for position in np.flatnonzero(~(lengths <= MAX_QUERY_LENGTH)).tolist():
        where = "embedding" if len(rows) == 1 else f"embedding[{position}]"
        raise InvalidValue(
            f"{where} has the length {lengths[position]:.3g}, the limit is {MAX_QUERY_LENGTH:g}: "
            "scale it, since the encoder's own vectors have about length 1"
        )
    return rows.astype(np.float32)


def _result(
    deployment: Deployment, request: LabelsRequest, prediction: Prediction
) -> dict[str, Any]:
    shown = prediction.scores
    if request.scores == "raw" and prediction.raw_scores is not None:
        shown = prediction.raw_scores
    rows, scores = prediction.rows.tolist(), shown.tolist()
    if request.min_score is not None:
        end = bisect_right(scores, -request.min_score, key=operator.neg)  # scores fall
        rows, scores = rows[:end], scores[:end]
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


def _plan(plan: FilterPlan) -> dict[str, Any]:
    return {
        "kind": plan.kind,
        "open": plan.n_open,
        "labels": plan.n_rows,
        "unknown_ids": plan.n_unknown,
    }


async def _explain(deployment: Deployment, answer: Answer, results: list[dict[str, Any]]) -> None:
    """Add an explanation to each result."""
    engine = deployment.engine
    point = next(
        point
        for point in engine.manifest.operating_points
        if point.name == answer.queries[0].effort
    )
    embeddings = np.stack([item.embedding for item in answer.predictions])
    # This searches the memory once more, which would block the event loop.
    neighbours = await asyncio.to_thread(engine.neighbours, embeddings, point.name)
    moved = await asyncio.to_thread(engine.contributions, answer.queries, answer.predictions)
    stages = {"queue": answer.queue_s, **answer.timings.stages}
    for i, (result, prediction) in enumerate(zip(results, answer.predictions, strict=True)):
        scores = [label["score"] for label in result["labels"]]
        raw = prediction.scores if prediction.raw_scores is None else prediction.raw_scores
        result["explanation"] = {
            "point": point.model_dump(include={"name", "recall_at_10", "p_at_1", "search_us_p50"}),
            "margins": [round(high - low, SCORE_DECIMALS) for high, low in pairwise(scores)],
            "raw_scores": [round(score, SCORE_DECIMALS) for score in raw.tolist()[: len(scores)]],
            "neighbours": None if neighbours is None else neighbours[i],
            "contributions": None if moved is None else _rounded(moved[i][: len(scores)]),
            "stages_ms": {name: round(seconds * 1e3, 3) for name, seconds in stages.items()},
            "batch_queries": answer.batch_queries,
        }


def _rounded(moved: list[dict[str, float] | None]) -> list[dict[str, float] | None]:
    return [
        features and {name: round(value, SCORE_DECIMALS) for name, value in features.items()}
        for features in moved
    ]


def _label(label: Label, score: float, include: Sequence[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": label.label_id}
    if "text" in include:
        entry["text"] = label.text
    if "metadata" in include:
        entry["metadata"] = label.metadata
    entry["score"] = round(score, SCORE_DECIMALS)
    return entry
