"""Every route: where it is, what it answers, and how OpenAPI describes it.

The hot route runs as a bare ASGI endpoint (`service.api.recommend`); the others are plain FastAPI.
"""

from collections.abc import Callable
from importlib.resources import files
from typing import Annotated, Any, Final

from fastapi import FastAPI, Path, Query, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.routing import APIRoute
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from service.api.problems import PROBLEMS_PATH, ProblemKind, problem_kinds, responses
from service.api.recommend import Recommend
from service.api.schemas import (
    AdaptiveEffortReport,
    DeviceReport,
    EncoderReport,
    InfoResponse,
    LimitsReport,
    RecommendResponse,
    RequestLimits,
    Status,
    request_models,
)
from service.api.serving import Serving
from service.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidValue,
    MalformedRequest,
    NotFound,
    NotReady,
    PayloadTooLarge,
    PredictFailed,
    QueueFull,
    ShuttingDown,
    Unauthorized,
    UnsupportedMediaType,
)
from service.telemetry import CONTENT_TYPE
from service.version import __version__

ASSETS_PATH: Final = "/docs/assets"

# What any route may answer: the gate checks key, deadline header and size before it.
_ANY = (Unauthorized, PayloadTooLarge, InvalidValue, InternalError)
_RECOMMEND = (
    *_ANY,
    MalformedRequest,
    UnsupportedMediaType,
    QueueFull,
    PredictFailed,
    NotReady,
    ShuttingDown,
    DeadlineExceeded,
)

_ANSWER_HEADERS: Final[dict[str, Any]] = {
    "X-Request-Id": {
        "description": "The id sent with the request, or a new one.",
        "schema": {"type": "string"},
    },
    "Server-Timing": {
        "description": "Milliseconds in queue, tokenize, encode, search and in total.",
        "schema": {"type": "string"},
    },
}


Bare = dict[tuple[str, str], ASGIApp]
"""(method, path) to an endpoint that runs outside FastAPI's stack."""


def add_routes(app: FastAPI, serving: Serving) -> Bare:
    """Add every route to the application; returns those that the gate may call directly."""
    bare = _add_recommend(app, serving)
    _add_info(app, serving)
    _add_probes(app, serving)
    _add_problems(app)
    _add_docs(app)
    return bare


def _add_recommend(app: FastAPI, serving: Serving) -> Bare:
    engine, settings = serving.engine, serving.settings
    manifest = engine.manifest
    defaults = manifest.defaults
    body_model, parameters_model = request_models(
        RequestLimits(
            max_queries=settings.max_queries,
            max_text_chars=settings.max_text_chars,
            max_k=settings.max_k,
            default_k=defaults.k,
            default_effort=defaults.effort,
            efforts=engine.efforts,
            item_filter=manifest.filter is not None,
        )
    )
    endpoints = Recommend(serving, body_model, parameters_model)

    def recommend(body: body_model) -> None:  # type: ignore[valid-type]
        """The best labels for one text or for a list of texts, best first."""

    def recommend_one(parameters: Annotated[parameters_model, Query()]) -> None:  # type: ignore[valid-type]
        """The same for one text, for a browser or a cache."""

    extra = {"parameters": [_timeout_header(settings.request_timeout_max_ms)]}
    _document(app, "POST", "/v1/recommend", recommend, endpoints.post, extra)
    _document(app, "GET", "/v1/recommend", recommend_one, endpoints.get, extra)
    return {
        ("POST", "/v1/recommend"): endpoints.post,
        ("GET", "/v1/recommend"): endpoints.get,
    }


def _document(
    app: FastAPI,
    method: str,
    path: str,
    described: Callable[..., None],
    endpoint: ASGIApp,
    extra: dict[str, Any],
) -> None:
    """Let FastAPI describe a bare endpoint, from the signature and docstring of `described`."""
    documented = responses(*_RECOMMEND)
    documented[200] = {"model": RecommendResponse, "headers": _ANSWER_HEADERS}
    route = APIRoute(
        path,
        described,
        methods=[method],
        tags=["recommend"],
        responses=documented,
        openapi_extra=extra,
    )
    route.app = endpoint
    app.router.routes.append(route)


def _timeout_header(max_ms: int) -> dict[str, Any]:
    return {
        "name": "X-Request-Timeout-Ms",
        "in": "header",
        "required": False,
        "description": "Deadline of this request in milliseconds.",
        "schema": {"type": "integer", "minimum": 1, "maximum": max_ms},
    }


def _add_info(app: FastAPI, serving: Serving) -> None:
    report = _info(serving)

    @app.get("/v1/info", tags=["about"], responses=responses(*_ANY))
    async def info() -> InfoResponse:
        """What is being served, how good it was measured to be, and within which limits."""
        return report.model_copy(update={"adaptive_effort": _adaptive_effort(serving)})


def _add_probes(app: FastAPI, serving: Serving) -> None:
    @app.get("/livez", tags=["probes"], responses=responses(*_ANY))
    async def livez() -> Status:
        """Whether the process runs; says nothing about the bundle."""
        return Status(status="alive")

    @app.get("/readyz", tags=["probes"], responses=responses(*_ANY, NotReady, ShuttingDown))
    async def readyz() -> Status:
        """Whether requests are answered: bundle open, lanes alive, queue moving, not draining."""
        serving.check_ready()
        return Status(status="ready")

    @app.get(
        "/metrics",
        tags=["probes"],
        response_class=Response,
        responses={
            **responses(*_ANY),
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        },
    )
    async def metrics() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(serving.telemetry.render(), headers={"Content-Type": CONTENT_TYPE})


def _add_problems(app: FastAPI) -> None:
    kinds = problem_kinds()

    @app.get(PROBLEMS_PATH + "{code}", tags=["about"], responses=responses(*_ANY, NotFound))
    async def problem(
        code: Annotated[str, Path(json_schema_extra={"enum": list(kinds)})],
    ) -> ProblemKind:
        """What a problem document's code means."""
        if code not in kinds:
            raise NotFound(f"there is no problem {code[:80]!r}; known are {', '.join(kinds)}")
        return kinds[code]


def _add_docs(app: FastAPI) -> None:
    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        page = get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon.png",
            # Swagger UI would otherwise send the schema's address to an outside validator.
            swagger_ui_parameters={"validatorUrl": None},
        )
        page.headers["Content-Security-Policy"] = (
            "default-src 'self'; img-src 'self' data:; "
            "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'"
        )
        return page

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("docs")

    assets = str(files("fastapi_offline") / "static")
    app.mount(ASSETS_PATH, StaticFiles(directory=assets), name="assets")


def _adaptive_effort(serving: Serving) -> AdaptiveEffortReport | None:
    if serving.effort is None:
        return None
    steps, steps_down = serving.effort.steps, serving.effort_steps_down()
    return AdaptiveEffortReport(ceiling=steps[-1 - steps_down], steps_down=steps_down, steps=steps)


def _info(serving: Serving) -> InfoResponse:
    engine, settings = serving.engine, serving.settings
    manifest = engine.manifest
    return InfoResponse(
        name=manifest.name,
        bundle_id=manifest.bundle_id,
        created=manifest.created,
        version=__version__,
        n_labels=manifest.labels.n_labels,
        dim=manifest.encoder.dim,
        index_kind=manifest.index.kind,
        score_kind=engine.calibration.score_kind,  # type: ignore[arg-type]
        default_k=manifest.defaults.k,
        default_effort=manifest.defaults.effort,
        operating_points=manifest.operating_points,
        quality=manifest.quality,
        parity=manifest.parity,
        calibration=manifest.calibration,
        memory=manifest.memory,
        item_filter=manifest.filter,
        adaptive_effort=_adaptive_effort(serving),
        encoder=EncoderReport(
            variant=engine.variant,
            default=manifest.encoder.served,
            available=list(manifest.encoder.variants),
            measured=manifest.encoder.measured,
        ),
        device=DeviceReport(requested=settings.device, active=engine.encoder.device),
        lanes=serving.batcher.limits.lanes,
        limits=LimitsReport(
            max_queries=settings.max_queries,
            max_text_chars=settings.max_text_chars,
            max_tokens=manifest.tokenizer.max_tokens,
            max_k=settings.max_k,
            max_body_bytes=settings.max_body_bytes,
            max_batch_tokens=settings.max_batch_tokens,
            max_queue_tokens=settings.max_queue_tokens,
            request_timeout_ms=settings.request_timeout_ms,
            request_timeout_max_ms=settings.request_timeout_max_ms,
        ),
    )
