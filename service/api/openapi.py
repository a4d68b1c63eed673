"""What OpenAPI says beyond what FastAPI writes: bare endpoints, headers that every answering route
takes, and links from an answer to the request that it makes possible.

A client generator or a fuzzer follows the links: what is added is then looked up, changed and
removed.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import ASGIApp

from service.gate.gate import PRIORITY_NAMES
from service.serving.deployments import X_BUNDLE


def document(
    app: FastAPI,
    tag: str,
    method: str,
    path: str,
    described: Callable[..., None],
    endpoint: ASGIApp,
    responses: Mapping[int | str, dict[str, Any]],
    extra: dict[str, Any],
) -> None:
    """Route a path to a bare endpoint, described by the signature and docstring of `described`."""
    route = APIRoute(
        path,
        described,
        methods=[method],
        tags=[tag],
        responses=dict(responses),
        openapi_extra=extra,
    )
    route.app = endpoint
    app.router.routes.append(route)


def request_headers(max_timeout_ms: int) -> list[dict[str, Any]]:
    """OpenAPI parameters for the deadline and the priority of a request, and who answers it."""
    return [
        _header(
            "X-Request-Timeout-Ms",
            "Deadline of this request in milliseconds.",
            {"type": "integer", "minimum": 1, "maximum": max_timeout_ms},
        ),
        _header(
            "X-Request-Priority",
            "Bulk requests wait while interactive ones do, and are turned away first.",
            {"type": "string", "enum": list(PRIORITY_NAMES), "default": PRIORITY_NAMES[0]},
        ),
        _header(
            "X-Bundle",
            "Answer from this open bundle: `current`, `canary`, or the start of its id.",
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
    """A link to the operation at a path of the document, such as `/v1/labels/{label_id}`.

    Values are runtime expressions such as `$response.body#/name`, or stand for themselves.
    """
    pointer = path.replace("~", "~0").replace("/", "~1")
    found: dict[str, Any] = {"operationRef": f"#/paths/{pointer}/{verb}", "parameters": parameters}
    if body is not None:
        found["requestBody"] = body
    return found


def links(**named: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """The entry for 200 in a route's `responses` with these links."""
    return {200: {"links": named}}
