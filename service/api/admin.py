"""Admin routes: they list the open bundles and change them while the service answers.

The gate lets nobody through without the admin key. A route answers as soon as its change is in
force in this worker. Other workers follow within a second and the time that opening takes.
"""

import pathlib
import re
from typing import Annotated, Any, Final

from fastapi import FastAPI, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from service.api.openapi import link, links
from service.api.reports import models_report
from service.api.schemas import ModelsResponse
from service.bundle.manifest import POINTER
from service.bundle.verify import resolve
from service.errors import (
    BundleNotFound,
    BundleRefused,
    Forbidden,
    InternalError,
    InvalidValue,
    MalformedRequest,
    ModelUnknown,
    NoSuchBundle,
    NotFound,
    NotReady,
    PayloadTooLarge,
    RateLimited,
    ShuttingDown,
    Unauthorized,
)
from service.gate.problems import responses
from service.serving.follow import Follower
from service.serving.serving import Serving
from service.settings.settings import Settings

_PART: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_PATH: Final = f"^{_PART}(/{_PART}){{0,2}}$"

_ERRORS = (
    Unauthorized,
    Forbidden,
    RateLimited,
    NotReady,
    ShuttingDown,
    PayloadTooLarge,
    MalformedRequest,
    InvalidValue,
    InternalError,
    NotFound,
    ModelUnknown,
    NoSuchBundle,
    BundleRefused,
)

_NAME: Final = "$response.body#/models/0/name"
_ACTIVATED: Final = links(
    rollBack=link("post", "/admin/bundles/rollback", {}, {"model": _NAME}),
    remove=link("delete", "/admin/models/{name}", {"name": "$response.body#/models/1/name"}),
)
_CANARY: Final = links(
    promote=link("post", "/admin/bundles/activate", {}, {"bundle": "$request.body#/bundle"}),
    end=link("delete", "/admin/bundles/canary", {"model": _NAME}),
)


BundlePath = Annotated[
    str,
    Field(
        pattern=_PATH,
        description="Folder of the bundle under `bundle_root`, or of bundles with a pointer.",
    ),
]


class ActivateBody(BaseModel):
    """Which bundle to serve under its own name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    bundle: BundlePath = Field(
        examples=["20261122-1f0c", "gutenberg-bag/20261122-1f0c", "gutenberg-best/20261122-1f0c"]
    )


class CanaryBody(BaseModel):
    """Which bundle gets a share of its name's requests."""

    model_config = ConfigDict(extra="forbid", strict=True)

    bundle: BundlePath = Field(examples=["gutenberg-bag/20261122-1f0c"])
    percent: float = Field(
        ge=0, le=100, description="Share of the requests that it answers.", examples=[5.0]
    )


class RollbackBody(BaseModel):
    """Which model goes back."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="Name of the model; the default one if null.")


def add_admin(app: FastAPI, serving: Serving, follower: Follower) -> None:
    """Add the routes under /admin/."""
    deployments, settings = serving.deployments, serving.settings
    options: dict[str, Any] = {"tags": ["admin"], "responses": responses(*_ERRORS)}
    named = Query(
        description="Name of the model; the default one if left.", examples=["gutenberg-bag"]
    )
    Model = Annotated[str | None, named]

    @app.get("/admin/bundles", **options)
    async def bundles() -> ModelsResponse:
        """Every model and its open bundles."""
        return models_report(deployments)

    @app.post("/admin/bundles/activate", **_with(options, _ACTIVATED))
    async def activate(body: ActivateBody) -> ModelsResponse:
        """Serve a bundle in place of the one of its name; promotes it where it is the canary."""
        async with follower.changing():
            await deployments.activate(locate(settings, body.bundle))
        return models_report(deployments)

    @app.post("/admin/bundles/rollback", **options)
    async def rollback(body: RollbackBody) -> ModelsResponse:
        """Serve the bundle before the current one again."""
        async with follower.changing():
            await deployments.rollback(body.model or deployments.default.name)
        return models_report(deployments)

    @app.post("/admin/bundles/canary", **_with(options, _CANARY))
    async def canary(body: CanaryBody) -> ModelsResponse:
        """Let a bundle answer a share of its name's requests; a second call changes the share."""
        async with follower.changing():
            await deployments.canary(locate(settings, body.bundle), body.percent)
        return models_report(deployments)

    @app.delete("/admin/bundles/canary", **options)
    async def end_canary(model: Model = None) -> ModelsResponse:
        """Send every request to the current bundle again."""
        async with follower.changing():
            await deployments.end_canary(model or deployments.default.name)
        return models_report(deployments)

    @app.delete("/admin/models/{name}", **options)
    async def remove(
        name: Annotated[str, Path(examples=["gutenberg-best"])],
    ) -> ModelsResponse:
        """Stop serving a model that is not the default one."""
        async with follower.changing():
            await deployments.remove(name)
        return models_report(deployments)


def _with(options: dict[str, Any], more: dict[int | str, dict[str, Any]]) -> dict[str, Any]:
    return {**options, "responses": options["responses"] | more}


def bundle_root(settings: Settings) -> pathlib.Path:
    """The folder that admin requests name bundles in."""
    if settings.bundle_root is not None:
        return settings.bundle_root
    return settings.bundle if (settings.bundle / POINTER).is_file() else settings.bundle.parent


def locate(settings: Settings, name: str) -> pathlib.Path:
    """The bundle folder that a request names; raises NoSuchBundle, InvalidValue.

    No path and no link leads outside the bundle root.
    """
    root = bundle_root(settings)
    if not re.fullmatch(_PATH[1:-1], name):
        raise InvalidValue(
            f"bundle is {name[:80]!r}, expected the name of a folder under the bundle root"
        )
    try:
        folder = resolve(root / name)
        inside = folder.resolve(strict=True).is_relative_to(root.resolve(strict=True))
    except (BundleNotFound, OSError):
        inside = False
    if not inside:
        raise NoSuchBundle(f"there is no bundle {name[:200]!r} under the bundle root {root.name}/")
    return folder
