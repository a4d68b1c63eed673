"""The parts of the OpenAPI document that FastAPI cannot write by itself.

They are the endpoints that FastAPI does not call, the request headers that these endpoints share,
and links. A link leads from an answer to a request that uses a value of this answer. Client
generators and fuzzers follow links: they add a label, then look it up, change it and remove it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import ASGIApp

from service.gate.gate import PRIORITY_NAMES
from service.serving.deployments import X_BUNDLE
from service.serving.serving import Serving


def document(
    app: FastAPI,
    serving: Serving,
    tag: str,
    method: str,
    path: str,
    description: Callable[..., Any],
    endpoint: ASGIApp,
    responses: Mapping[int | str, dict[str, Any]],
) -> None:
    """Route a path to an endpoint, and describe it in OpenAPI.

    FastAPI reads the description from the signature and the docstring of `description`, which is
    never called.
    """
    route = APIRoute(
        path,
        description,
        methods=[method],
        tags=[tag],
        responses=dict(responses),
        openapi_extra={"parameters": _headers(serving.settings.request_timeout_max_ms)},
    )
    route.app = endpoint
    app.router.routes.append(route)


def _headers(max_timeout_ms: int) -> list[dict[str, Any]]:
    """OpenAPI parameters for the deadline, the priority and the bundle of a request."""
    return [
        _header(
            "X-Request-Timeout-Ms",
            "Deadline of this request in milliseconds.",
            {"type": "integer", "minimum": 1, "maximum": max_timeout_ms},
        ),
        _header(
            "X-Request-Priority",
            "The service answers bulk requests after interactive ones, and refuses them first.",
            {"type": "string", "enum": list(PRIORITY_NAMES), "default": PRIORITY_NAMES[0]},
        ),
        _header(
            "X-Bundle",
            "Open bundle that answers: `current`, `canary`, or the start of a bundle's id.",
            {"type": "string", "pattern": f"^{X_BUNDLE.pattern}$"},
        ),
    ]


def _header(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": schema,
    }


def link(
    verb: str, path: str, parameters: dict[str, str], body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """An OpenAPI link to the operation at a path, such as `/v1/labels/{label_id}`.

    `parameters` and `body` fill the next request. A value is a constant, or a runtime expression
    such as `$response.body#/name` (OpenAPI 3.1, "Runtime Expressions").
    """
    pointer = path.replace("~", "~0").replace("/", "~1")
    entry: dict[str, Any] = {"operationRef": f"#/paths/{pointer}/{verb}", "parameters": parameters}
    if body is not None:
        entry["requestBody"] = body
    return entry


def links(**by_name: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` entry that gives the answer with status 200 these links."""
    return {200: {"links": by_name}}
