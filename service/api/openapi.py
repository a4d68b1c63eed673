"""What OpenAPI says beyond what FastAPI writes itself.

That is: the endpoints that FastAPI does not call, the request headers that they share, and links
from an answer to the requests that it makes possible. A client generator or a fuzzer follows the
links: it looks up the label that it added, then changes and removes it.
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
    described: Callable[..., Any],
    endpoint: ASGIApp,
    responses: Mapping[int | str, dict[str, Any]],
) -> None:
    """Route a path to an endpoint that the signature and docstring of `described` describe."""
    route = APIRoute(
        path,
        described,
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

    Values are runtime expressions such as `$response.body#/name`, or constants.
    """
    pointer = path.replace("~", "~0").replace("/", "~1")
    entry: dict[str, Any] = {"operationRef": f"#/paths/{pointer}/{verb}", "parameters": parameters}
    if body is not None:
        entry["requestBody"] = body
    return entry


def links(**named: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """The entry for 200 in a route's `responses` with these links."""
    return {200: {"links": named}}
