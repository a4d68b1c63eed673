"""create_app: makes the ASGI application from open engines, settings and telemetry.

Importing this module has no effect. The application's lifespan starts and stops the lanes.
"""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route

from service.api.json_route import JsonRoute
from service.api.routes import add_routes
from service.core.engine import Engine
from service.errors import AstrolabeError, MethodNotAllowed, NotFound, RequestError
from service.gate.bodies import refusal
from service.gate.exchange import EXCHANGE
from service.gate.gate import Gate, answer_error, request_ids
from service.gate.problems import Problem, as_error
from service.observe.telemetry import Telemetry
from service.serving.deployment import open_changed_engine
from service.serving.follow import Follower
from service.serving.held import HeldBundles
from service.serving.serving import open_serving
from service.settings.settings import Settings
from service.version import __version__


def create_app(
    engine: Engine,
    settings: Settings,
    telemetry: Telemetry,
    clock: Callable[[], float] = time.perf_counter,
    more: Sequence[Engine] = (),
    held: HeldBundles | None = None,
) -> Gate:
    """The application. `engine` is the default model; the engines in `more` answer by their names.

    `clock` gives seconds; deadlines and latencies are measured by it. `held` are the bundles that
    a master holds open for this worker; None where it holds none.
    """
    open_ = open_changed_engine if held is None else held.open
    serving = open_serving([engine, *more], settings, telemetry, clock, open_)
    follower = Follower(serving.deployments, settings, telemetry.background, held)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        serving.deployments.start()
        await follower.start()
        if serving.feedback is not None:
            serving.feedback.start(telemetry.background)
        yield
        await follower.stop()
        await serving.drain()
        if serving.feedback is not None:
            await serving.feedback.stop()

    app = FastAPI(
        title="Astrolabe",
        version=__version__,
        description="Recommends labels for texts, best first, with scores.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            kind: _answer
            for kind in (AstrolabeError, HTTPException, RequestValidationError, Exception)
        },
    )
    app.router.route_class = JsonRoute
    bare = add_routes(app, serving, follower)
    app.openapi = _with_problem(app)  # type: ignore[method-assign]
    return Gate(app, bare, serving, request_ids().__next__)


async def _answer(request: Request, exc: Exception) -> Response:
    """The error answer for an exception that FastAPI, Starlette or one of their routes raised."""
    error, extra = as_error(exc), {}
    path = request.url.path
    if isinstance(exc, RequestValidationError):
        error = _refusal(exc)
    elif isinstance(exc, HTTPException) and exc.status_code == NotFound.status:
        error = NotFound(f"there is no route {path[:200]!r}: /docs lists them")
    elif isinstance(exc, HTTPException) and exc.status_code == MethodNotAllowed.status:
        allowed = _methods(request)
        error = MethodNotAllowed(
            f"{path[:200]} takes {' and '.join(allowed)}, not {request.method}"
        )
        extra["allow"] = ", ".join(allowed)
    status, headers, body = answer_error(error, request.scope[EXCHANGE])
    response = Response(body, status, extra)
    response.raw_headers = headers + [h for h in response.raw_headers if h[0] == b"allow"]
    return response


def _refusal(exc: RequestValidationError) -> RequestError:
    """The error of the first part of the request that has one: its path, query string or body."""
    part = exc.errors()[0]["loc"][0]
    faults = [
        fault | {"loc": fault["loc"][1:]} for fault in exc.errors() if fault["loc"][0] == part
    ]
    return refusal(faults, exc.body if part == "body" else {})


def _methods(request: Request) -> list[str]:
    """Every method that a route takes at this path; Starlette names those of one route only."""
    methods: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    return sorted(methods)


def _with_problem(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """FastAPI's OpenAPI document, and in it the schema to which every error answer refers."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        document["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        return document

    return openapi
