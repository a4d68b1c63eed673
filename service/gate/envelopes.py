"""The body of an error answer, in the form that the clients of a path expect.

The service's own routes answer with problem documents. The Open Inference Protocol has one
sentence under `error`, OpenAI's API an object there. Both know no 422, so a value that is not
allowed is 400. The header x-request-id comes with each.
"""

from typing import Any, Final

import orjson
from pydantic import BaseModel, Field

from service.errors import AstrolabeError, InvalidValue, MalformedRequest, OverloadError
from service.gate.problems import Headers, problem_body, problem_headers

JSON: Final = "application/json"
OIP_PREFIX: Final = "/v2"
OPENAI_PREFIXES: Final = ("/v1/embeddings", "/v1/models/")


class OipError(BaseModel):
    """An error as the Open Inference Protocol has it."""

    error: str = Field(description="What happened and what to change.")


class OpenAIFault(BaseModel):
    """What OpenAI's clients read of an error."""

    message: str = Field(description="What happened and what to change.")
    type: str = Field(description="invalid_request_error, rate_limit_error or server_error.")
    param: str | None = Field(description="The field at fault, where one is.")
    code: str = Field(description="The kind of problem, for programs; stable.")


class OpenAIError(BaseModel):
    """An error as OpenAI's API has it."""

    error: OpenAIFault


def envelope(error: AstrolabeError, path: str, request_id: str) -> tuple[int, Headers, bytes]:
    """Status, headers and body that answer an error on this path."""
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
    # what a path or a value holds need not be valid Unicode, JSON must be
    return text.encode(errors="replace").decode()
