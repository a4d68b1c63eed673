"""Admin routes: they list the open bundles, and open and replace bundles while the service runs.

The gate refuses requests without the admin key. A route answers as soon as its change is in force
in this worker. The other workers notice the change within a second. They open the bundle too, or
are replaced by workers that share it (docs/decisions/0027).
"""

import asyncio
import pathlib
import re
from typing import Annotated, Any, Final

from fastapi import FastAPI, Path, Query
from pydantic import Field

from service.api.openapi import link, links
from service.api.reports import models_report
from service.api.schemas import ModelsResponse
from service.bundle.manifest import POINTER
from service.bundle.verify import resolve
from service.errors import (
    BundleError,
    BundleNotFound,
    BundleRefused,
    DeadlineExceeded,
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
    StateUnavailable,
    Unauthorized,
    UnsupportedMediaType,
)
from service.gate.gate import begin_change
from service.gate.problems import responses
from service.serving.fetching import Fetching
from service.serving.follow import Follower
from service.serving.json_object import JsonObject
from service.serving.serving import Serving
from service.settings.places import BundleUrl, parse_place
from service.settings.settings import Settings

_PART: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_PATH: Final = f"^{_PART}(/{_PART}){{0,2}}$"
"""Up to three folder names. None can begin with a dot, so no path leads upward."""
_BUNDLE_ID: Final = re.compile("[0-9a-f]{64}")
_URL: Final = "^[a-z0-9]{2,5}://[!-~]{1,1000}$"

_ERRORS = (
    Unauthorized,
    Forbidden,
    RateLimited,
    NotReady,
    ShuttingDown,
    PayloadTooLarge,
    MalformedRequest,
    UnsupportedMediaType,
    InvalidValue,
    InternalError,
    DeadlineExceeded,
    NotFound,
    ModelUnknown,
    NoSuchBundle,
    BundleRefused,
    StateUnavailable,
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
        pattern=f"{_PATH}|{_URL}",
        description="Folder under `bundle_root`, or the URL of one under it: a bundle, or a folder "
        "whose pointer names one.",
    ),
]


class ActivateBody(JsonObject):
    """The bundle that becomes the current one of its model."""

    bundle: BundlePath = Field(
        examples=["20261122-1f0c", "gutenberg-bag/20261122-1f0c", "gutenberg-best/20261122-1f0c"]
    )


class CanaryBody(JsonObject):
    """The bundle that becomes the canary of its model, and its share of the requests."""

    bundle: BundlePath = Field(examples=["gutenberg-bag/20261122-1f0c"])
    percent: float = Field(
        ge=0, le=100, description="Percent of the model's requests that it answers.", examples=[5.0]
    )


class RollbackBody(JsonObject):
    """The model that goes back to its previous bundle."""

    model: str | None = Field(None, description="Name of the model; the default one if null.")


def add_admin(app: FastAPI, serving: Serving, follower: Follower) -> None:
    """Add the routes under /admin/."""
    deployments, settings = serving.deployments, serving.settings
    options: dict[str, Any] = {"tags": ["admin"], "responses": responses(*_ERRORS)}
    name_parameter = Query(
        description="Name of the model; the default one if left out.", examples=["gutenberg-bag"]
    )
    Model = Annotated[str | None, name_parameter]

    @app.get("/admin/bundles", **options)
    async def bundles() -> ModelsResponse:
        """List every model with its open bundles."""
        return models_report(deployments)

    @app.post("/admin/bundles/activate", **_with(options, _ACTIVATED))
    async def activate(body: ActivateBody) -> ModelsResponse:
        """Make a bundle the current one of its model; a canary is promoted this way."""
        async with follower.changing(begin_change):
            await deployments.activate(await asyncio.to_thread(locate, settings, body.bundle))
        return models_report(deployments)

    @app.post("/admin/bundles/rollback", **options)
    async def rollback(body: RollbackBody) -> ModelsResponse:
        """Make the previous bundle of a model the current one again."""
        async with follower.changing(begin_change):
            await deployments.rollback(body.model or deployments.default.name)
        return models_report(deployments)

    @app.post("/admin/bundles/canary", **_with(options, _CANARY))
    async def canary(body: CanaryBody) -> ModelsResponse:
        """Let a bundle answer a share of its model's requests; call again to change the share."""
        async with follower.changing(begin_change):
            folder = await asyncio.to_thread(locate, settings, body.bundle)
            await deployments.canary(folder, body.percent)
        return models_report(deployments)

    @app.delete("/admin/bundles/canary", **options)
    async def end_canary(model: Model = None) -> ModelsResponse:
        """End the canary: the current bundle answers all requests of the model again."""
        async with follower.changing(begin_change):
            await deployments.end_canary(model or deployments.default.name)
        return models_report(deployments)

    @app.delete("/admin/models/{name}", **options)
    async def remove(
        name: Annotated[str, Path(examples=["gutenberg-best"])],
    ) -> ModelsResponse:
        """Stop serving a model; the default model cannot be removed."""
        async with follower.changing(begin_change):
            await deployments.remove(name)
        return models_report(deployments)


def _with(options: dict[str, Any], more: dict[int | str, dict[str, Any]]) -> dict[str, Any]:
    return {**options, "responses": options["responses"] | more}


def bundle_root(settings: Settings) -> pathlib.Path | BundleUrl:
    """The folder or URL under which admin requests name bundles.

    It is the setting `bundle_root`. Without it, it is what contains the first bundle.
    """
    if settings.bundle_root is not None:
        return settings.bundle_root
    place = settings.bundle
    if isinstance(place, BundleUrl):
        # What lies there is not asked: pushed bundles are named by their ids.
        above, _, name = place.rpartition("/")
        return BundleUrl(above) if _BUNDLE_ID.fullmatch(name) else place
    return place if (place / POINTER).is_file() else place.parent


def locate(settings: Settings, name: str) -> pathlib.Path:
    """The bundle folder that a request names, fetched first if it lies under a URL. Blocking.

    Raises InvalidValue if the name is no folder's, NoSuchBundle if there is no bundle of this name
    or if a link leads outside the bundle root, and BundleRefused if it cannot be fetched.
    """
    root = bundle_root(settings)
    if isinstance(root, BundleUrl):
        return _fetch(settings, root, name)
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


def _fetch(settings: Settings, root: BundleUrl, name: str) -> pathlib.Path:
    """The folder of a bundle under the root's URL, once it is here. Blocking."""
    url = name if "://" in name else f"{root}/{name}"
    try:
        place = parse_place(url)
    except ValueError as exc:
        raise InvalidValue(f"bundle: {exc}") from exc
    if not isinstance(place, BundleUrl) or not f"{place}/".startswith(f"{root}/"):
        raise NoSuchBundle(f"{url[:200]!r} does not lie under the bundle root {root}")
    try:
        return Fetching(place, settings).fetch()
    except BundleNotFound as exc:
        raise NoSuchBundle(exc.detail) from exc
    except BundleError as exc:
        raise BundleRefused(exc.detail) from exc
