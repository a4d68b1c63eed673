"""OpenAI's embeddings API: /v1/embeddings and /v1/models/{name}, for clients that speak it already.

Texts become vectors by the same admission, batches and deadlines as answers do. Not offered: token
arrays (the tokens would be those of another model), shortened vectors, streaming.
"""

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import orjson
from fastapi import FastAPI, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.openapi import document, request_headers
from service.api.protocol_requests import check_texts, deployment_named
from service.api.recommend import check_room, server_timing
from service.api.reports import model_object
from service.api.schemas import ModelObject
from service.core.types import Float32Rows, Prediction, Query
from service.errors import InvalidValue
from service.gate.bodies import check_json, parse, read_body, validate
from service.gate.envelopes import OpenAIError
from service.gate.exchange import EXCHANGE, Exchange
from service.gate.watch import Watch
from service.serving.serving import Serving

EMBEDDINGS: Final = "/v1/embeddings"
ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": OpenAIError, "description": what}
    for status, what in (("4XX", "The request is at fault."), ("5XX", "The service is."))
}


class EmbeddingsRequest(BaseModel):
    """The body of POST /v1/embeddings."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: str | list[str] = Field(
        description="One text, or a list of texts; no token arrays.",
        examples=["moby dick", ["moby dick", "a history of rome"]],
    )
    model: str = Field(description="GET /v1/models lists them.", examples=["gutenberg-bag"])
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: little-endian float32, which is smaller and faster to read."
    )
    dimensions: int | None = Field(None, description="If given, it must be what the model has.")
    user: str | None = Field(None, description="Taken and not used.")


class EmbeddingObject(BaseModel):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that were encoded, those cut off at the model's limit not counted."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """Vectors in the order of the texts."""

    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    usage: Usage


class Embeddings:
    """The endpoint of POST /v1/embeddings, bound to what it answers from."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def post(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer POST /v1/embeddings."""
        exchange: Exchange = scope[EXCHANGE]
        serving = self._serving
        check_json(exchange.headers.get(b"content-type", b""))
        check_room(serving, exchange)
        with Watch(receive, exchange.left_s, exchange.reply) as watch:
            request = _request(parse(await read_body(receive)))
            deployment = deployment_named(serving, exchange, request.model)
            _check_dimensions(request, deployment.engine.manifest.encoder.dim)
            texts = [request.input] if isinstance(request.input, str) else request.input
            check_texts("input", texts, serving.settings)
            exchange.queries = texts
            effort = deployment.engine.manifest.defaults.effort
            queries = [Query(text, 0, effort, None, True) for text in texts]
            answer = exchange.answer = await watch.answer(
                deployment.batcher.submit(queries, exchange.deadline_s, exchange.bulk)
            )
        content = _content(request, answer.predictions)
        body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"server-timing", server_timing(answer, serving.clock() - exchange.started_s)),
        ]
        await exchange.respond(send, 200, headers, body)


def add_openai(app: FastAPI, serving: Serving) -> dict[tuple[str, str], ASGIApp]:
    """Add the routes of OpenAI's API; returns those that the gate may call directly."""
    endpoint = Embeddings(serving).post

    def embeddings(body: EmbeddingsRequest) -> None:
        """Vectors of texts, in the form of OpenAI's API."""

    extra = {"parameters": request_headers(serving.settings.request_timeout_max_ms)}
    responses = {200: {"model": EmbeddingsResponse}, **ERRORS}
    document(app, "openai", "POST", EMBEDDINGS, embeddings, endpoint, responses, extra)

    @app.get("/v1/models/{name}", tags=["openai"], responses=ERRORS)
    async def model(
        name: Annotated[str, Path(description="A model's name.", examples=["gutenberg-bag"])],
    ) -> ModelObject:
        """One model, in the form of OpenAI's API."""
        return model_object(serving.deployments.slot(name).current)

    return {("POST", EMBEDDINGS): endpoint}


def _request(raw: Any) -> EmbeddingsRequest:
    if isinstance(raw, dict) and _holds_tokens(raw.get("input")):
        raise InvalidValue(
            "input holds tokens, which are another model's: send texts", field="input"
        )
    return validate(EmbeddingsRequest, raw)


def _holds_tokens(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and isinstance(given[0], int | list)


def _check_dimensions(request: EmbeddingsRequest, dim: int) -> None:
    if request.dimensions not in (None, dim):
        raise InvalidValue(
            f"dimensions is {request.dimensions}, the vectors of {request.model} have {dim} and "
            "cannot be shortened: leave it out",
            field="dimensions",
        )


def _content(request: EmbeddingsRequest, predictions: Sequence[Prediction]) -> dict[str, Any]:
    vectors: list[Any] = [item.embedding for item in predictions]
    if request.encoding_format == "base64":
        vectors = [_base64(vector) for vector in vectors]
    n_tokens = sum(item.n_tokens for item in predictions)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(vectors)
        ],
        "model": request.model,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }


def _base64(vector: Float32Rows) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
