"""OpenAI's embeddings API: /v1/embeddings and /v1/models/{name}, for clients written for it.

The service does not offer token arrays, shortened vectors or streaming. Token ids belong to
another model's vocabulary, so they mean nothing to this encoder.
"""

import base64
from typing import Annotated, Any, Final, Literal

from fastapi import FastAPI, Path
from pydantic import BaseModel, Field
from starlette.types import ASGIApp

from service.api.embed import encode_only
from service.api.endpoint import Endpoint, as_json, as_list
from service.api.openapi import document
from service.api.reports import model_object
from service.api.schemas import ModelObject
from service.core.batching.job import Answer
from service.core.types import Float32Rows, Query
from service.errors import InvalidValue
from service.gate.bodies import check_texts, validate
from service.gate.exchange import Exchange
from service.gate.problems import Headers, OpenAIError, envelope_responses
from service.serving.deployment import Deployment
from service.serving.json_object import JsonObject
from service.serving.serving import Serving

EMBEDDINGS: Final = "/v1/embeddings"
ERRORS: Final = envelope_responses(OpenAIError)


class EmbeddingsRequest(JsonObject):
    """The body of POST /v1/embeddings."""

    input: str | Annotated[list[str], Field(fail_fast=True)] = Field(
        description="One text, or a list of texts; no token arrays.",
        examples=["moby dick", ["moby dick", "a history of rome"]],
    )
    model: str = Field(description="GET /v1/models lists them.", examples=["gutenberg-bag"])
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: little-endian float32, which is smaller and faster to read."
    )
    dimensions: int | None = Field(
        None, description="If present, it must be the length of the model's vectors."
    )
    user: str | None = Field(None, description="Accepted and ignored.")


class EmbeddingObject(BaseModel):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """How many tokens the encoder read; tokens beyond the model's limit do not count."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """One vector for each text, in the order of the texts."""

    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    usage: Usage


class Embeddings(Endpoint[EmbeddingsRequest]):
    """POST /v1/embeddings."""

    texts = "input"

    def queries(
        self, exchange: Exchange, deployment: Deployment, value: Any
    ) -> tuple[EmbeddingsRequest, list[Query]]:
        """One query for each text."""
        if isinstance(value, dict) and _holds_tokens(value.get("input")):
            raise InvalidValue(
                "input holds token ids, which this model cannot read: send texts", field="input"
            )
        request = validate(EmbeddingsRequest, value)
        _check_dimensions(request, deployment.engine.manifest.encoder.dim)
        texts = as_list(request.input)
        check_texts("input", texts, self._serving.settings)
        exchange.queries = texts
        return request, encode_only(deployment, texts)

    async def write(
        self, deployment: Deployment, request: EmbeddingsRequest, answer: Answer
    ) -> tuple[Headers, bytes]:
        """The vectors as OpenAI's API has them, in the order of the texts."""
        vectors: list[Any] = [item.embedding for item in answer.predictions]
        if request.encoding_format == "base64":
            vectors = [_base64(vector) for vector in vectors]
        n_tokens = sum(item.n_tokens for item in answer.predictions)
        return as_json(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": index, "embedding": vector}
                    for index, vector in enumerate(vectors)
                ],
                "model": request.model,
                "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
            }
        )


def add_openai(app: FastAPI, serving: Serving) -> dict[tuple[str, str], ASGIApp]:
    """Add the routes of OpenAI's API; returns the endpoints that the gate calls itself."""
    endpoint = Embeddings(serving)

    def embeddings(body: EmbeddingsRequest) -> None:
        """Vectors of texts, in the form of OpenAI's API."""

    responses = {200: {"model": EmbeddingsResponse}, **ERRORS}
    document(app, serving, "openai", "POST", EMBEDDINGS, embeddings, endpoint, responses)

    @app.get("/v1/models/{name}", tags=["openai"], responses=ERRORS)
    async def model(
        name: Annotated[str, Path(description="A model's name.", examples=["gutenberg-bag"])],
    ) -> ModelObject:
        """One model, in the form of OpenAI's API."""
        return model_object(serving.deployments.slot(name).current)

    return {("POST", EMBEDDINGS): endpoint}


def _holds_tokens(texts: Any) -> bool:
    return isinstance(texts, list) and bool(texts) and isinstance(texts[0], int | list)


def _check_dimensions(request: EmbeddingsRequest, dim: int) -> None:
    if request.dimensions not in (None, dim):
        raise InvalidValue(
            f"dimensions is {request.dimensions}, but {request.model} has vectors of {dim}, which "
            "cannot be shortened: leave dimensions out",
            field="dimensions",
        )


def _base64(vector: Float32Rows) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
