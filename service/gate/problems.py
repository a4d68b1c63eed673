"""Every error answer as an RFC 9457 problem document, mapped by table from the exception tree.

`type` is a URI reference that this service resolves: GET /problems/{code} explains the code.
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
    PayloadTooLarge,
    RequestError,
    Unauthorized,
    UnsupportedMediaType,
)

MEDIA_TYPE: Final = "application/problem+json"
PROBLEMS_PATH: Final = "/problems/"

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
    """What every error answer holds."""

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


def problem_kinds() -> dict[str, ProblemKind]:
    """Every kind of problem that an answer can be, by code."""
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
    """Any exception as one of the tree; what is not ours becomes a bare InternalError."""
    if isinstance(exc, AstrolabeError):
        return exc
    if isinstance(exc, HTTPException) and exc.status_code in _BY_STATUS:
        return _BY_STATUS[exc.status_code](str(exc.detail))
    return InternalError("something broke inside the service: report the request_id")


def problem_body(error: AstrolabeError, request_id: str) -> bytes:
    """The problem document of an error."""
    return orjson.dumps(
        {
            "type": PROBLEMS_PATH + error.code,
            "title": error.title,
            "status": error.status,
            # what a path or a value holds need not be valid Unicode, JSON must be
            "detail": error.detail.encode(errors="replace").decode(),
            "code": error.code,
            "request_id": request_id,
        }
    )


def problem_headers(error: AstrolabeError, body: bytes, media_type: str = MEDIA_TYPE) -> Headers:
    """Headers that go with the body of an error answer."""
    headers = [
        (b"content-type", media_type.encode()),
        (b"content-length", str(len(body)).encode()),
    ]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after_s)).encode()))
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, PayloadTooLarge):
        # What the client still sends is not read, so the connection cannot be used again.
        headers.append((b"connection", b"close"))
    return headers


def responses(*errors: type[AstrolabeError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for these errors, as FastAPI's `responses` takes them."""
    by_status: dict[int, list[type[AstrolabeError]]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append(error)
    return {status: _response(leaves) for status, leaves in sorted(by_status.items())}


def _response(leaves: Sequence[type[AstrolabeError]]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "description": "; ".join(f"`{leaf.code}`: {leaf.title}" for leaf in leaves),
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        "headers": {"X-Request-Id": {"schema": {"type": "string"}}},
    }
    if any(leaf.retryable for leaf in leaves):
        entry["headers"]["Retry-After"] = {
            "description": "Seconds after which trying again makes sense.",
            "schema": {"type": "integer"},
        }
    return entry


def _tree(root: type[AstrolabeError]) -> list[type[AstrolabeError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]
