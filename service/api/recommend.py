"""/v1/recommend: texts, or vectors, to the best labels. This is the hot route."""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.types import Receive, Scope

from service.api.endpoint import NO_STORE, Endpoint, as_json, as_list, as_query, as_shown
from service.core.batching.job import Answer
from service.core.index.protocol import MAX_QUERY_LENGTH
from service.core.labels.labels import Label
from service.core.labels.moves import RULES
from service.core.types import FilterPlan, Prediction, Query
from service.errors import InvalidValue
from service.gate.bodies import query_string, validate
from service.gate.exchange import Exchange
from service.gate.problems import Headers
from service.serving.deployment import Deployment
from service.serving.query_texts import HistoryRequest
from service.serving.request_models import (
    SCORE_DECIMALS,
    ItemRequest,
    LabelsRequest,
    RecommendRequest,
    label_filter_of,
)


class Recommend(Endpoint[LabelsRequest]):
    """POST /v1/recommend."""

    logs_answers = True

    def queries(
        self, exchange: Exchange, deployment: Deployment, value: Any
    ) -> tuple[LabelsRequest, list[Query]]:
        """One query for each text."""
        request = validate(deployment.request_models.body, value)
        _check_diversity(deployment, request)
        texts = as_list(request.query)
        exchange.queries = as_shown(texts)
        return request, _queries(request, texts)

    async def write(
        self, deployment: Deployment, request: LabelsRequest, answer: Answer
    ) -> tuple[Headers, bytes]:
        """The labels of each query, best first."""
        engine, effort = deployment.engine, answer.queries[0].effort
        results = [_result(deployment, request, item) for item in answer.predictions]
        if request.explain:
            await _explain(deployment, request, answer, results)
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
        _check_diversity(deployment, request)
        shared = _shared(request)
        return request, [Query("", vector=v, **shared) for v in _vectors(request.embedding)]


def _queries(request: RecommendRequest, texts: Sequence[str | HistoryRequest]) -> list[Query]:
    shared = _shared(request)
    item_id = request.item_id if isinstance(request, ItemRequest) else None
    if item_id is None:  # the hot path
        return [as_query(text, **shared) for text in texts]
    if isinstance(item_id, str) is isinstance(request.query, list):
        raise InvalidValue("item_id must be like query: one for one text, a list for a list")
    item_ids = [item_id] if isinstance(item_id, str) else item_id
    if len(item_ids) != len(texts):
        raise InvalidValue(
            f"item_id holds {len(item_ids)} ids for {len(texts)} texts: give one for each, or null"
        )
    return [
        as_query(text, item_id=item, **shared) for text, item in zip(texts, item_ids, strict=True)
    ]


def _shared(request: LabelsRequest) -> dict[str, Any]:
    """What all queries of a request share."""
    return {
        "k": request.k,
        "effort": request.effort,
        "effort_strict": request.effort_strict,
        "label_filter": label_filter_of(request),
        "diversity": request.diversity,
    }


def _check_diversity(deployment: Deployment, request: LabelsRequest) -> None:
    """Raise InvalidValue for diversity where the index has no vectors to compare."""
    if request.diversity and not deployment.engine.can_diversify:
        raise InvalidValue(
            "diversity needs a vector for each label, which this bundle's index of kind "
            f"{deployment.engine.index.kind} does not give: leave diversity out",
            field="diversity",
        )


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
    kept = _kept(request, prediction)
    if len(kept) < len(rows):
        rows, scores = [rows[i] for i in kept], [scores[i] for i in kept]
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
    if prediction.rules is not None:
        for label, i in zip(labels, kept, strict=True):
            if code := prediction.rules[i]:
                label["rule"] = RULES[code]
    result: dict[str, Any] = {"labels": labels, "truncated": prediction.truncated}
    if "embedding" in include:
        result["embedding"] = prediction.embedding
    if prediction.plan is not None:
        result["plan"] = _plan(prediction.plan)
    return result


def _kept(request: LabelsRequest, prediction: Prediction) -> Sequence[int]:
    """The places of the labels whose score is at least `min_score`."""
    shown = prediction.scores
    if request.scores == "raw" and prediction.raw_scores is not None:
        shown = prediction.raw_scores
    if request.min_score is None:
        return range(len(shown))
    # Scores fall, unless diversity or a rule has moved a label.
    return [i for i, score in enumerate(shown.tolist()) if score >= request.min_score]


def _plan(plan: FilterPlan) -> dict[str, Any]:
    return {
        "kind": plan.kind,
        "open": plan.n_open,
        "labels": plan.n_rows,
        "unknown_ids": plan.n_unknown,
    }


async def _explain(
    deployment: Deployment, request: LabelsRequest, answer: Answer, results: list[dict[str, Any]]
) -> None:
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
        kept = _kept(request, prediction)
        raw = prediction.scores if prediction.raw_scores is None else prediction.raw_scores
        result["explanation"] = {
            "point": point.model_dump(include={"name", "recall_at_10", "p_at_1", "search_us_p50"}),
            "margins": [round(high - low, SCORE_DECIMALS) for high, low in pairwise(scores)],
            "raw_scores": [round(float(raw[i]), SCORE_DECIMALS) for i in kept],
            "neighbours": None if neighbours is None else neighbours[i],
            "contributions": None if moved is None else _rounded([moved[i][j] for j in kept]),
            "rules": _rules(prediction, kept),
            "stages_ms": {name: round(seconds * 1e3, 3) for name, seconds in stages.items()},
            "batch_queries": answer.batch_queries,
        }


def _rules(prediction: Prediction, kept: Sequence[int]) -> list[dict[str, Any] | None] | None:
    """For each label the rule that moved it, and the score that it would have without a boost."""
    if prediction.rules is None or prediction.unruled is None:
        return None
    return [
        {
            "rule": RULES[prediction.rules[i]],
            "score_without": round(float(prediction.unruled[i]), SCORE_DECIMALS),
        }
        if prediction.rules[i]
        else None
        for i in kept
    ]


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
