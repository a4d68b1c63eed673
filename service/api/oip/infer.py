"""Inference in the Open Inference Protocol v2 over HTTP, so clients of KServe and Triton work here.

The protocol's model is a bundle under its name, and the model's version is the beginning of the
bundle's id. The inputs are `text` (BYTES) and the optional `k` (INT32). The outputs are `label_id`,
`label_text`, `score` and `embedding`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from fastapi import FastAPI
from starlette.types import Receive, Scope

from service.api.endpoint import Endpoint
from service.api.oip.metadata import (
    ERRORS,
    TAG,
    InferResponse,
    Name,
    add_oip_metadata,
    at_version,
    version_of,
)
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
from service.api.openapi import document
from service.core.batching.job import Answer
from service.core.labels.labels import Label
from service.core.types import Query
from service.errors import InvalidValue, MalformedRequest
from service.gate.bodies import check_encoding, check_texts, parse, read_body, validate
from service.gate.exchange import EXCHANGE, Exchange
from service.gate.problems import Headers
from service.serving.deployment import Deployment
from service.serving.serving import Serving
from service.settings.settings import Settings

LABEL_OUTPUTS: Final = ("label_id", "label_text", "score")
OUTPUTS: Final = (*LABEL_OUTPUTS, "embedding")
HEADER_LENGTH: Final = b"inference-header-content-length"
BINARY: Final = b"application/octet-stream"
BULK_FROM: Final = 2
"""In Triton a larger number is a lower priority, and 1 is the highest. The service treats
priorities from this number on as bulk work."""


@dataclass(frozen=True, slots=True)
class Inference:
    """A request, and the names of the outputs in the order in which the answer has them."""

    request: InferRequest
    outputs: list[str]


class Infer(Endpoint[Inference]):
    """POST /v2/models/{name}[/versions/{version}]/infer."""

    texts = "text"

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuse a compressed body; raises UnsupportedMediaType."""
        check_encoding(headers)

    async def read(self, scope: Scope, receive: Receive) -> tuple[bytes, Any]:
        """The bytes for the cache, and the pair of the body's JSON value and binary data.

        The header Inference-Header-Content-Length tells how long the JSON is.

        Raises Abandoned, MalformedRequest, InvalidValue.
        """
        body = await read_body(receive)
        header = scope[EXCHANGE].headers.get(HEADER_LENGTH)
        if header is None:
            return body, (parse(body), b"")
        length = _json_length(header, len(body))
        return header + b"\n" + body, (parse(body[:length]), body[length:])

    def deployment(self, scope: Scope, value: Any) -> Deployment:
        """The bundle that the path names; raises ModelUnknown, NoSuchBundle, InvalidValue."""
        parameters = scope["path_params"]
        if "version" in parameters:
            slot = self._serving.deployments.slot(parameters["name"])
            return at_version(slot, parameters["version"])
        return self._choose(scope[EXCHANGE], parameters["name"])

    def queries(
        self, exchange: Exchange, deployment: Deployment, value: Any
    ) -> tuple[Inference, list[Query]]:
        """One query for each text; its k is 0 if the request names no output but the embedding."""
        content, binary = value
        request = validate(InferRequest, content)
        outputs = _outputs(request)
        queries = _queries(request, binary, outputs, deployment, self._serving.settings)
        exchange.queries = [query.text for query in queries]
        exchange.bulk = exchange.bulk or _is_bulk(request)
        return Inference(request, outputs), queries

    async def write(
        self, deployment: Deployment, request: Inference, answer: Answer
    ) -> tuple[Headers, bytes]:
        """The outputs as tensors; the request says of each whether in JSON or in binary form."""
        head = {"model_name": deployment.name, "model_version": version_of(deployment)}
        if request.request.id is not None:
            head["id"] = request.request.id
        tensors = _tensors(answer, deployment.engine.catalogue.label, request.outputs)
        body, json_length = serialise(head, tensors, _in_binary(request))
        if json_length is None:
            return [(b"content-type", b"application/json")], body
        return [(b"content-type", BINARY), (HEADER_LENGTH, b"%d" % json_length)], body


def add_oip(app: FastAPI, serving: Serving) -> None:
    """Add the routes of the protocol."""
    add_oip_metadata(app, serving)
    endpoint = Infer(serving)

    def infer(name: Name, body: InferRequest) -> None:
        """The best labels for each text and its vector, in the Open Inference Protocol."""

    def infer_version(name: Name, version: str, body: InferRequest) -> None:
        """The best labels for each text and its vector, from one version of the model."""

    responses = {200: {"model": InferResponse}, **ERRORS}
    for path, description in (
        ("/v2/models/{name}/infer", infer),
        ("/v2/models/{name}/versions/{version}/infer", infer_version),
    ):
        document(app, serving, TAG, "POST", path, description, endpoint, responses)


def _json_length(header: bytes, body_length: int) -> int:
    if not header.isdigit() or len(header) > 9 or int(header) > body_length:
        raise MalformedRequest(
            "Inference-Header-Content-Length must be the length in bytes of the JSON at the start "
            f"of the body, at most {body_length}"
        )
    return int(header)


def _outputs(request: InferRequest) -> list[str]:
    """Names of the outputs in the order of the request; all of them if it names none."""
    if not request.outputs:
        return list(OUTPUTS)
    for output in request.outputs:
        if output.name not in OUTPUTS:
            raise InvalidValue(
                f"there is no output {output.name[:80]!r}: the outputs are {', '.join(OUTPUTS)}"
            )
        refuse_parameters(output.parameters, f"output {output.name}")
    return [output.name for output in request.outputs]


def _queries(
    request: InferRequest,
    binary: bytes,
    outputs: Sequence[str],
    deployment: Deployment,
    settings: Settings,
) -> list[Query]:
    inputs = _by_name(request.inputs, split_binary(request.inputs, binary))
    if "text" not in inputs:
        raise InvalidValue("input text is missing: send it as BYTES of shape [n] or [n, 1]")
    texts = texts_of(*inputs["text"])
    check_texts("text", texts, settings)
    if request.parameters.get("sequence_id"):
        raise InvalidValue("no model here keeps a state between requests: leave sequence_id out")
    defaults = deployment.engine.manifest.defaults
    k = integer_of(*inputs["k"]) if "k" in inputs else request.parameters.get("k", defaults.k)
    if type(k) is not int or not 1 <= k <= settings.max_k:
        raise InvalidValue(f"k must be a whole number from 1 to {settings.max_k}")
    effort = request.parameters.get("effort", defaults.effort)
    if effort not in deployment.engine.efforts:
        raise InvalidValue(f"effort must be one of {', '.join(deployment.engine.efforts)}")
    if not any(name in LABEL_OUTPUTS for name in outputs):
        k = 0  # embeddings alone need no search
    return [Query(text, k, effort) for text in texts]


def _by_name(
    tensors: Sequence[InputTensor], parts: Sequence[bytes | None]
) -> dict[str, tuple[InputTensor, bytes | None]]:
    by_name = {tensor.name: (tensor, part) for tensor, part in zip(tensors, parts, strict=True)}
    unknown = sorted(set(by_name) - {"text", "k"})
    if unknown:
        raise InvalidValue(f"there is no input {unknown[0][:80]!r}: the inputs are text and k")
    if len(by_name) != len(tensors):
        raise InvalidValue("the request has an input more than once: send each input once")
    return by_name


def _is_bulk(request: InferRequest) -> bool:
    priority = request.parameters.get("priority", 0)
    if type(priority) is not int or priority < 0:
        raise InvalidValue("priority must be a whole number: 1 is the highest, 0 the default")
    return priority >= BULK_FROM


def _in_binary(inference: Inference) -> list[bool]:
    """Whether each output of the answer is in binary form."""
    request = inference.request
    default = request.parameters.get("binary_data_output", False) is True
    if not request.outputs:
        return [default] * len(inference.outputs)
    return [output.parameters.get("binary_data", default) is True for output in request.outputs]


def _tensors(
    answer: Answer, label_of: Callable[[int], Label], outputs: Sequence[str]
) -> list[OutputTensor]:
    """The outputs, one row for each text; `embedding` is (n, dim), the others are (n, width).

    The width is the number of labels of the longest row. "" or NaN fills up shorter rows.
    """
    width = max(len(item.rows) for item in answer.predictions)
    labels = [[label_of(row) for row in item.rows.tolist()] for item in answer.predictions]
    tensors: list[OutputTensor] = []
    for name in outputs:
        if name == "embedding":
            values = np.stack([item.embedding for item in answer.predictions])
            tensors.append(OutputTensor(name, values))
        elif name == "score":
            scores = np.full((len(labels), width), np.nan, np.float32)
            for row, item in zip(scores, answer.predictions, strict=True):
                row[: len(item.scores)] = item.scores
            tensors.append(OutputTensor(name, scores))
        else:
            field = "label_id" if name == "label_id" else "text"
            texts = [[getattr(label, field) for label in row] for row in labels]
            tensors.append(OutputTensor(name, [row + [""] * (width - len(row)) for row in texts]))
    return tensors
