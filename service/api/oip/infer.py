"""The Open Inference Protocol v2 over HTTP, so that clients of KServe and Triton work unchanged.

A model is a bundle under its name, its version the beginning of the bundle's id. Input `text`
(BYTES) and optional `k` (INT32) give `label_id`, `label_text`, `score` and `embedding`. Admission,
batches and deadlines are those of /v1/recommend.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from service.api.oip.metadata import ERRORS, InferResponse, Name, add_oip_metadata
from service.api.oip.tensors import (
    InferRequest,
    InputTensor,
    OutputTensor,
    integer_of,
    refuse_parameters,
    serialise,
    split_binary,
    texts_of,
)
from service.api.openapi import document, request_headers
from service.api.protocol_requests import check_texts, deployment_named, version_of
from service.api.recommend import check_room, server_timing
from service.core.batching.job import Answer
from service.core.labels.labels import Label
from service.core.types import Query
from service.errors import InvalidValue, MalformedRequest, UnsupportedMediaType
from service.gate.bodies import parse, read_body, validate
from service.gate.exchange import EXCHANGE, Exchange
from service.gate.watch import Watch
from service.serving.deployment import Deployment
from service.serving.serving import Serving
from service.settings.settings import Settings

LABEL_OUTPUTS: Final = ("label_id", "label_text", "score")
OUTPUTS: Final = (*LABEL_OUTPUTS, "embedding")
HEADER_LENGTH: Final = b"inference-header-content-length"
BINARY: Final = b"application/octet-stream"
BULK_FROM: Final = 2
"""Triton counts priorities from 1, the highest; what is lower than that is bulk work."""


class Infer:
    """The endpoint of .../infer, bound to what it answers from."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def post(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer POST /v2/models/{name}[/versions/{version}]/infer."""
        exchange: Exchange = scope[EXCHANGE]
        serving, given = self._serving, scope["path_params"]
        _check_encoding(exchange.headers)
        check_room(serving, exchange)
        with Watch(receive, exchange.left_s, exchange.reply) as watch:
            request, binary = _split(await read_body(receive), exchange.headers.get(HEADER_LENGTH))
            deployment = deployment_named(serving, exchange, given["name"], given.get("version"))
            wanted = _wanted(request)
            queries = _queries(request, binary, wanted, deployment, serving.settings)
            exchange.queries = [query.text for query in queries]
            bulk = exchange.bulk or _is_bulk(request)
            answer = exchange.answer = await watch.answer(
                deployment.batcher.submit(queries, exchange.deadline_s, bulk)
            )
        head = {"model_name": given["name"], "model_version": version_of(deployment)}
        if request.id is not None:
            head["id"] = request.id
        tensors = _tensors(answer, deployment.engine.catalogue.label, wanted)
        body, header_length = serialise(head, tensors, _binary_wanted(request, wanted))
        total_s = serving.clock() - exchange.started_s
        headers = [
            (b"content-length", b"%d" % len(body)),
            (b"server-timing", server_timing(answer, total_s)),
            (b"content-type", b"application/json" if header_length is None else BINARY),
        ]
        if header_length is not None:
            headers.append((HEADER_LENGTH, b"%d" % header_length))
        # Not through the exchange: this route runs inside FastAPI, which names the answer already.
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        if queries[0].k:
            serving.telemetry.answered(answer.queries[0].effort, len(queries), total_s)
            serving.telemetry.served(answer.predictions)


def add_oip(app: FastAPI, serving: Serving) -> None:
    """Add the routes of the protocol."""
    add_oip_metadata(app, serving)
    endpoint = Infer(serving).post

    def infer(name: Name, body: InferRequest) -> None:
        """The best labels for texts, and their vectors, in the Open Inference Protocol."""

    def infer_version(name: Name, version: str, body: InferRequest) -> None:
        """The same, of one version of the model."""

    extra = {"parameters": request_headers(serving.settings.request_timeout_max_ms)}
    responses = {200: {"model": InferResponse}, **ERRORS}
    for path, described in (
        ("/v2/models/{name}/infer", infer),
        ("/v2/models/{name}/versions/{version}/infer", infer_version),
    ):
        document(
            app, "open inference protocol", "POST", path, described, endpoint, responses, extra
        )


def _check_encoding(headers: dict[bytes, bytes]) -> None:
    encoding = headers.get(b"content-encoding", b"identity")
    if encoding.lower() != b"identity":
        raise UnsupportedMediaType(
            "the body is compressed, which is not offered: send it as it is "
            "(tritonclient: request_compression_algorithm=None)"
        )


def _split(body: bytes, header_length: bytes | None) -> tuple[InferRequest, bytes]:
    """The JSON of a request, and the binary data after it."""
    if header_length is None:
        return validate(InferRequest, parse(body)), b""
    if not header_length.isdigit() or len(header_length) > 9 or int(header_length) > len(body):
        raise MalformedRequest(
            "Inference-Header-Content-Length must be the length of the JSON that the body begins "
            f"with, at most {len(body)}"
        )
    length = int(header_length)
    return validate(InferRequest, parse(body[:length])), body[length:]


def _wanted(request: InferRequest) -> list[str]:
    """Names of the outputs to answer with, in the order asked for."""
    if not request.outputs:
        return list(OUTPUTS)
    for output in request.outputs:
        if output.name not in OUTPUTS:
            raise InvalidValue(
                f"there is no output {output.name[:80]!r}: there are {', '.join(OUTPUTS)}"
            )
        refuse_parameters(output.parameters, f"output {output.name}")
    return [output.name for output in request.outputs]


def _queries(
    request: InferRequest,
    binary: bytes,
    wanted: Sequence[str],
    deployment: Deployment,
    settings: Settings,
) -> list[Query]:
    inputs = _by_name(request.inputs, split_binary(request.inputs, binary))
    if "text" not in inputs:
        raise InvalidValue("input text is missing: send it as BYTES of shape [n] or [n, 1]")
    texts = texts_of(*inputs["text"])
    check_texts("text", texts, settings)
    if request.parameters.get("sequence_id"):
        raise InvalidValue("sequence_id is given, and no model here keeps sequences: leave it out")
    defaults = deployment.engine.manifest.defaults
    k = integer_of(*inputs["k"]) if "k" in inputs else request.parameters.get("k", defaults.k)
    if type(k) is not int or not 1 <= k <= settings.max_k:
        raise InvalidValue(f"k must be a whole number from 1 to {settings.max_k}")
    effort = request.parameters.get("effort", defaults.effort)
    if effort not in deployment.engine.efforts:
        raise InvalidValue(f"effort must be one of {', '.join(deployment.engine.efforts)}")
    if not any(name in LABEL_OUTPUTS for name in wanted):
        k = 0  # only vectors are wanted, so nothing is searched
    return [Query(text, k, effort) for text in texts]


def _by_name(
    tensors: Sequence[InputTensor], parts: Sequence[bytes | None]
) -> dict[str, tuple[InputTensor, bytes | None]]:
    named = {tensor.name: (tensor, part) for tensor, part in zip(tensors, parts, strict=True)}
    unknown = sorted(set(named) - {"text", "k"})
    if unknown:
        raise InvalidValue(f"there is no input {unknown[0][:80]!r}: there are text and k")
    if len(named) != len(tensors):
        raise InvalidValue("an input is given more than once: give each one once")
    return named


def _is_bulk(request: InferRequest) -> bool:
    priority = request.parameters.get("priority", 0)
    if type(priority) is not int or priority < 0:
        raise InvalidValue("priority must be a whole number: 1 is the highest, 0 the default")
    return priority >= BULK_FROM


def _binary_wanted(request: InferRequest, wanted: Sequence[str]) -> list[bool]:
    default = request.parameters.get("binary_data_output", False) is True
    if not request.outputs:
        return [default] * len(wanted)
    return [output.parameters.get("binary_data", default) is True for output in request.outputs]


def _tensors(
    answer: Answer, label_of: Callable[[int], Label], wanted: Sequence[str]
) -> list[OutputTensor]:
    """The outputs that are wanted. A row with fewer labels is filled up with "" and NaN."""
    width = max(len(item.rows) for item in answer.predictions)
    found = [[label_of(row) for row in item.rows.tolist()] for item in answer.predictions]
    tensors: list[OutputTensor] = []
    for name in wanted:
        if name == "embedding":
            values = np.stack([item.embedding for item in answer.predictions])
            tensors.append(OutputTensor(name, values))
        elif name == "score":
            scores = np.full((len(found), width), np.nan, np.float32)
            for row, item in zip(scores, answer.predictions, strict=True):
                row[: len(item.scores)] = item.scores
            tensors.append(OutputTensor(name, scores))
        else:
            field = "label_id" if name == "label_id" else "text"
            texts = [[getattr(label, field) for label in row] for row in found]
            tensors.append(OutputTensor(name, [row + [""] * (width - len(row)) for row in texts]))
    return tensors
