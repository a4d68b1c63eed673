"""What the standard protocols share: which model is meant, and which texts may be sent to it.

The limits are those of /v1/recommend, so that a text is as welcome by one door as by another.
"""

import re
from collections.abc import Sequence

from service.api.recommend import PINNED as PINNED_HEADER
from service.errors import InvalidValue, NoSuchBundle, PayloadTooLarge
from service.gate.exchange import Exchange
from service.serving.deployment import Deployment
from service.serving.deployments import Slot
from service.serving.request_models import VISIBLE
from service.serving.serving import Serving
from service.settings.settings import Settings

VERSION_CHARS = 12
"""A version of a model is this much of its bundle's id."""

_VISIBLE = re.compile(VISIBLE)


def deployment_named(
    serving: Serving, exchange: Exchange, name: str, version: str | None = None
) -> Deployment:
    """What answers this request for a model's name and version; submit before the next await.

    Without a version X-Bundle or a canary's share decide, as for /v1/recommend. Raises
    ModelUnknown, NoSuchBundle, InvalidValue.
    """
    if version is not None:
        return at_version(serving.deployments.slot(name), version)
    wanted = exchange.headers.get(PINNED_HEADER)
    return serving.deployments.choose(name, wanted, exchange.request_id)


def at_version(slot: Slot, version: str) -> Deployment:
    """The open bundle of this version; raises NoSuchBundle."""
    for deployment in open_bundles(slot):
        if version == version_of(deployment):
            return deployment
    versions = ", ".join(version_of(deployment) for deployment in open_bundles(slot))
    raise NoSuchBundle(
        f"model {slot.current.name} has no version {version[:80]!r}: there are {versions}"
    )


def open_bundles(slot: Slot) -> list[Deployment]:
    """The bundles that answer under one name, the current one first."""
    return [slot.current] if slot.canary is None else [slot.current, slot.canary]


def version_of(deployment: Deployment) -> str:
    """The version of what a deployment serves: it changes with the bundle."""
    return deployment.bundle_id[:VERSION_CHARS]


def check_texts(name: str, texts: Sequence[str], settings: Settings) -> None:
    """Refuse no texts, too many, and those that are too long or hold nothing; names the place.

    Raises InvalidValue, PayloadTooLarge.
    """
    if not texts:
        raise InvalidValue(f"{name} holds no text: send at least one")
    if len(texts) > settings.max_queries:
        raise PayloadTooLarge(
            f"{name} holds {len(texts)} texts, the limit is {settings.max_queries}: send fewer"
        )
    limit = settings.max_text_chars
    for position, text in enumerate(texts):
        if len(text) > limit:
            raise PayloadTooLarge(
                f"{name}[{position}] has {len(text)} characters, the limit is {limit}"
            )
        if not _VISIBLE.search(text):
            raise InvalidValue(f"{name}[{position}] holds no visible character: send some text")
