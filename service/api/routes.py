"""Every route: its path, its answers, and its description for OpenAPI.

Routes that compute are endpoints (`service.api.endpoint`), which the gate calls without FastAPI.
All others are plain FastAPI.
"""

from importlib.resources import files
from typing import Annotated, Any, Final

from fastapi import FastAPI, Path, Query, Response
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from service.api.admin import add_admin
from service.api.embed import Embed
from service.api.feedback import add_feedback
from service.api.labels import add_labels
from service.api.oip.infer import add_oip
from service.api.openai import add_openai
from service.api.openapi import document, link, links
from service.api.playground import add_playground
from service.api.recommend import Recommend, RecommendByEmbedding, RecommendOne
from service.api.reports import info_report, models_report
from service.api.schemas import (
    EmbedResponse,
    InfoResponse,
    ModelsResponse,
    RecommendResponse,
    Status,
)
from service.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    InternalError,
    InvalidValue,
    MalformedRequest,
    ModelUnknown,
    NoSuchBundle,
    NotFound,
    NotReady,
    PayloadTooLarge,
    PredictFailed,
    QueueFull,
    ShuttingDown,
    Unauthorized,
    UnsupportedMediaType,
)
from service.gate.problems import PROBLEMS_PATH, ProblemKind, problem_kinds, responses
from service.observe.telemetry import CONTENT_TYPE
from service.serving.follow import Follower
from service.serving.serving import Serving

ASSETS_PATH: Final = "/docs/assets"

# Any route may answer with these errors: the gate checks key, deadline and size before the route.
_ANY = (Unauthorized, PayloadTooLarge, InvalidValue, InternalError, DeadlineExceeded)
_RECOMMEND = (
    *_ANY,
    MalformedRequest,
    UnsupportedMediaType,
    QueueFull,
    DeadlineUnreachable,
    PredictFailed,
    NotReady,
    ShuttingDown,
    ModelUnknown,
    NoSuchBundle,
)

_ANSWER_HEADERS: Final[dict[str, Any]] = {
    "X-Request-Id": {
        "description": "The id sent with the request, or a new one.",
        "schema": {"type": "string"},
    },
    "Server-Timing": {
        "description": "Milliseconds in queue, tokenize, encode and search, and in total (W3C "
        "Server Timing). An answer from the cache has `cache` in place of the stages.",
        "schema": {"type": "string"},
    },
}


Bare = dict[tuple[str, str], ASGIApp]
"""Endpoints by (method, path), which the gate calls without FastAPI."""


def add_routes(app: FastAPI, serving: Serving, follower: Follower) -> Bare:
    """Add every route to the application; returns the endpoints that the gate calls itself."""
    bare = _add_recommend(app, serving)
    bare |= add_openai(app, serving)
    add_oip(app, serving)
    _add_info(app, serving)
    _add_probes(app, serving)
    _add_problems(app)
    _add_docs(app)
    add_feedback(app, serving)
    add_labels(app, serving)
    add_playground(app)
    if serving.settings.admin_key is not None:
        add_admin(app, serving, follower)
    return bare


def _add_recommend(app: FastAPI, serving: Serving) -> Bare:
    models = serving.default.request_models
    body_model, parameters_model = models.body, models.parameters
    embedding_model, embed_model = models.by_embedding, models.embed

    def recommend(body: body_model) -> RecommendResponse:  # type: ignore[valid-type,empty-body]
        """The best labels for one text, or for each of several texts; best first."""

    def recommend_one(  # type: ignore[empty-body]
        parameters: Annotated[parameters_model, Query()],  # type: ignore[valid-type]
    ) -> RecommendResponse:
        """The best labels for one text, by a URL that a browser can open and a cache can keep."""

    def recommend_by_embedding(  # type: ignore[empty-body]
        body: embedding_model,  # type: ignore[valid-type]
    ) -> RecommendResponse:
        """The best labels for one embedding from /v1/embed, or for each of several."""

    def embed(body: embed_model) -> EmbedResponse:  # type: ignore[valid-type,empty-body]
        """The embedding of one text, or of each of several texts."""

    answers = responses(*_RECOMMEND) | {200: {"headers": _ANSWER_HEADERS}}
    body = {"embedding": "$response.body#/embeddings/0"}
    to_recommend = links(recommend=link("post", "/v1/recommend/by-embedding", {}, body))
    embed_answers = answers | {200: answers[200] | to_recommend[200]}
    bare: Bare = {}
    for method, path, description, endpoint, entries in (
        ("POST", "/v1/recommend", recommend, Recommend(serving), answers),
        ("GET", "/v1/recommend", recommend_one, RecommendOne(serving), answers),
        (
            "POST",
            "/v1/recommend/by-embedding",
            recommend_by_embedding,
            RecommendByEmbedding(serving),
            answers,
        ),
        ("POST", "/v1/embed", embed, Embed(serving), embed_answers),
    ):
        document(app, serving, "recommend", method, path, description, endpoint, entries)
        bare[method, path] = endpoint
    return bare


def _add_info(app: FastAPI, serving: Serving) -> None:
    deployments = serving.deployments

    @app.get("/v1/info", tags=["about"], responses=responses(*_ANY, ModelUnknown))
    async def info(
        model: Annotated[
            str | None, Query(description="Name of the model; the default one if left out.")
        ] = None,
    ) -> InfoResponse:
        """The current bundle of a model, its measured quality, and the limits in force."""
        deployment = serving.default if model is None else deployments.slot(model).current
        return info_report(serving, deployment)

    @app.get("/v1/models", tags=["about"], responses=responses(*_ANY))
    async def models() -> ModelsResponse:
        """Every model with its open bundles."""
        return models_report(deployments)


def _add_probes(app: FastAPI, serving: Serving) -> None:
    @app.get("/livez", tags=["probes"], responses=responses(*_ANY))
    async def livez() -> Status:
        """Liveness: the process runs. It says nothing about the bundle."""
        return Status(status="alive")

    unready = (NotReady, ShuttingDown, QueueFull, DeadlineUnreachable)

    @app.get("/readyz", tags=["probes"], responses=responses(*_ANY, *unready, PredictFailed))
    async def readyz(
        deep: Annotated[bool, Query(description="Also let the model answer a text.")] = False,
    ) -> Status:
        """Readiness: bundle open, lanes alive, queue moving, and the service not draining."""
        serving.check_ready()
        if deep:
            await serving.check_answers()
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
        """Metrics in the text format of Prometheus."""
        return Response(serving.telemetry.render(), headers={"Content-Type": CONTENT_TYPE})


def _add_problems(app: FastAPI) -> None:
    kinds = problem_kinds()

    @app.get(PROBLEMS_PATH + "{code}", tags=["about"], responses=responses(*_ANY, NotFound))
    async def problem(
        code: Annotated[str, Path(json_schema_extra={"enum": list(kinds)})],
    ) -> ProblemKind:
        """What a code in a problem document means."""
        if code not in kinds:
            raise NotFound(f"there is no problem {code[:80]!r}: the codes are {', '.join(kinds)}")
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
            # By default Swagger UI sends the URL of the schema to a validator on the internet.
            swagger_ui_parameters={"validatorUrl": None},
        )
        page.headers["Content-Security-Policy"] = (
            "default-src 'self'; img-src 'self' data:; "
            "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'"
        )
        return page

    assets = str(files("fastapi_offline") / "static")
    app.mount(ASSETS_PATH, StaticFiles(directory=assets), name="assets")
