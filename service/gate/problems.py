"""Every error answer, in the form that the clients of its path expect.

The service's own routes answer with problem documents (RFC 9457). Their `type` is a path of this
service: GET /problems/{code} explains the code. The Open Inference Protocol has a sentence under
`error`, and OpenAI's API has an object there. Neither of the two knows status 422, so a value that
is not allowed gets 400 there. Every form comes with the header x-request-id.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from service.errors import (
    AstrolabeError,
    Forbidden,
    InternalError,
    InvalidValue,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    OverloadError,
    PayloadTooLarge,
    RequestError,
    Unauthorized,
    UnsupportedMediaType,
)

MEDIA_TYPE: Final = "application/problem+json"
JSON: Final = "application/json"
PROBLEMS_PATH: Final = "/problems/"
OIP_PREFIX: Final = "/v2"
OPENAI_PREFIXES: Final = ("/v1/embeddings", "/v1/models/")

_BY_STATUS: Final[dict[int, type[RequestError]]] = {
    leaf.status: leaf
    for leaf in (
        MalformedRequest,
        Unauthorized,
        Forbidden,
        NotFound,
        MethodNotAllowed,
        PayloadTooLarge,
        UnsupportedMediaType,
        InvalidValue,
    )
}

Headers = list[tuple[bytes, bytes]]


class Problem(BaseModel):
    """A problem document: the error answer of the service's own routes."""

    model_config = ConfigDict(extra="forbid")

    type: str = Field(description="Path that explains this kind of problem.")
    title: str = Field(description="The kind of problem, in words.")
    status: int = Field(description="The HTTP status, repeated.")
    detail: str = Field(description="What happened and what to change.")
    code: str = Field(description="The kind of problem, for programs; stable.")
    request_id: str = Field(description="Quote this when you report the problem.")


class ProblemKind(BaseModel):
    """One kind of problem, as GET /problems/{code} explains it."""

    type: str
    title: str
    status: int
    code: str
    retryable: bool = Field(description="Whether the same request may succeed later.")
    explanation: str


class OipError(BaseModel):
    """An error in the form of the Open Inference Protocol."""

    error: str = Field(description="What happened and what to change.")


class OpenAIFault(BaseModel):
    """The fields of an error that OpenAI's clients read."""

    message: str = Field(description="What happened and what to change.")
    type: str = Field(description="invalid_request_error, rate_limit_error or server_error.")
    param: str | None = Field(description="The field at fault; null if no single field is.")
    code: str = Field(description="The kind of problem, for programs; stable.")


class OpenAIError(BaseModel):
    """An error in the form of OpenAI's API."""

    error: OpenAIFault


def problem_kinds() -> dict[str, ProblemKind]:
    """Every kind of problem that an answer can report, by code."""
    leaves = [leaf for leaf in _tree(AstrolabeError) if "code" in leaf.__dict__]
    return {
        leaf.code: ProblemKind(
            type=PROBLEMS_PATH + leaf.code,
            title=leaf.title,
            status=leaf.status,
            code=leaf.code,
            retryable=leaf.retryable,
            explanation=" ".join((leaf.__doc__ or "").split()),
        )
        for leaf in leaves
    }


def as_error(exc: BaseException) -> AstrolabeError:
    """The exception as an error of the service.

    An exception of a library becomes an InternalError, which tells the client no details.
    """
    if isinstance(exc, AstrolabeError):
        return exc
    if isinstance(exc, HTTPException) and exc.status_code in _BY_STATUS:
        return _BY_STATUS[exc.status_code](str(exc.detail))
    return InternalError("something broke inside the service: report the request_id")


def envelope(error: AstrolabeError, path: str, request_id: str) -> tuple[int, Headers, bytes]:
    """Status, headers and body of the answer to an error on this path."""
    if path.startswith(OPENAI_PREFIXES):
        content: dict[str, Any] = {"error": _openai_fault(error)}
    elif path == OIP_PREFIX or path.startswith(OIP_PREFIX + "/"):
        content = {"error": _utf8(f"{error.code}: {error.detail}")}
    else:
        body = problem_body(error, request_id)
        return error.status, problem_headers(error, body), body
    status = MalformedRequest.status if error.status == InvalidValue.status else error.status
    body = orjson.dumps(content)
    return status, problem_headers(error, body, JSON), body


def _openai_fault(error: AstrolabeError) -> dict[str, Any]:
    kind = "invalid_request_error"
    if isinstance(error, OverloadError) and error.status == 429:
        kind = "rate_limit_error"
    elif error.status >= 500:
        kind = "server_error"
    return {
        "message": _utf8(error.detail),
        "type": kind,
        "param": error.field if isinstance(error, InvalidValue) else None,
        "code": error.code,
    }


def _utf8(text: str) -> str:
    # A path or a value in the text may be invalid Unicode, which JSON cannot hold.
    return text.encode(errors="replace").decode()


def problem_body(error: AstrolabeError, request_id: str) -> bytes:
    """The problem document of an error."""
    return orjson.dumps(
        {
            "type": PROBLEMS_PATH + error.code,
            "title": error.title,
            "status": error.status,
            "detail": _utf8(error.detail),
            "code": error.code,
            "request_id": request_id,
        }
    )


def problem_headers(error: AstrolabeError, body: bytes, media_type: str = MEDIA_TYPE) -> Headers:
    """The headers that belong to the body of an error answer."""
    headers = [
        (b"content-type", media_type.encode()),
        (b"content-length", str(len(body)).encode()),
    ]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after_s)).encode()))
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, PayloadTooLarge):
        # The rest of the body stays unread, so no further request can be read after it.
        headers.append((b"connection", b"close"))
    return headers


def responses(*errors: type[AstrolabeError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for these errors, as FastAPI's `responses` takes them."""
    by_status: dict[int, list[type[AstrolabeError]]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append(error)
    return {status: _response(leaves) for status, leaves in sorted(by_status.items())}


def envelope_responses(error: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the routes of a foreign protocol, whose errors all have one form."""
    return {
        "4XX": {"model": error, "description": "The request is at fault."},
        "5XX": {"model": error, "description": "The service is at fault."},
    }


def _response(leaves: Sequence[type[AstrolabeError]]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "description": "; ".join(f"`{leaf.code}`: {leaf.title}" for leaf in leaves),
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        "headers": {"X-Request-Id": {"schema": {"type": "string"}}},
    }
    if any(leaf.retryable for leaf in leaves):
        entry["headers"]["Retry-After"] = {
            "description": "Seconds to wait before the request is worth sending again.",
            "schema": {"type": "integer"},
        }
    return entry


def _tree(root: type[AstrolabeError]) -> list[type[AstrolabeError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]
