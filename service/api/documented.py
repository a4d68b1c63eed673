"""Bare ASGI endpoints that FastAPI describes in OpenAPI, and does nothing else for."""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import ASGIApp


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
