"""Deployments: the bundles being served, by name; which one answers a request; how they change.

A name has one current bundle, and for a while a canary that gets a share of the requests. A change
opens the new bundle beside the old one, and only a bundle that has passed every check takes over:
one reference is switched on the event loop, then the old one finishes what it accepted and goes.
"""

import asyncio
import ctypes
import gc
import logging
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.core.engine import Engine
from service.errors import (
    BundleError,
    BundleRefused,
    CatalogueError,
    DeviceUnavailable,
    InvalidValue,
    ModelUnknown,
    NoSuchBundle,
    SettingsInvalid,
)
from service.observe.telemetry import Telemetry
from service.serving.deployment import Deployment, open_changed_engine
from service.settings.settings import Settings
from service.version import __version__

log = logging.getLogger(__name__)

CURRENT: Final = "current"
CANARY: Final = "canary"
PINNED: Final = re.compile("(current|canary|[0-9a-f]{8,64})")
"""What the header X-Bundle may hold; a bundle's id may be cut to its first eight characters."""


@dataclass(slots=True)
class Slot:
    """What serves under one name. `previous` is the folder that `rollback` goes back to."""

    current: Deployment
    canary: Deployment | None = None
    canary_percent: float = 0.0
    previous: Path | None = None


class Deployments:
    """All slots of a process; everything but `choose` runs in the order that it is asked for.

    State belongs to the event loop's thread. The first engine is the default; `open_` opens a
    bundle folder, blocking. Raises SettingsInvalid where two engines have one name.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        settings: Settings,
        telemetry: Telemetry,
        clock: Callable[[], float],
        open_: Callable[[Path, Settings], Engine] = open_changed_engine,
    ) -> None:
        first, *more = (Deployment(engine, settings, telemetry, clock) for engine in engines)
        self.slots = {first.name: Slot(first)}
        self._default = self.slots[first.name]
        self._settings = settings
        self._telemetry = telemetry
        self._clock = clock
        self._open = open_
        self._lock = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()
        for other in more:
            if other.name in self.slots:
                raise SettingsInvalid(
                    f"two bundles are of model {other.name}: name one, and give the other a share "
                    "as a canary"
                )
            self.slots[other.name] = Slot(other)
        for deployment in self:
            self._describe(deployment, serving=True)

    @property
    def default(self) -> Deployment:
        """What answers a request that names no model."""
        return self._default.current

    @property
    def only(self) -> Deployment | None:
        """What answers every request, whatever it says; None where there is a choice."""
        if len(self.slots) > 1 or self._default.canary is not None:
            return None
        return self._default.current

    def __iter__(self) -> Iterator[Deployment]:
        """Every open deployment, canaries too."""
        for slot in self.slots.values():
            yield slot.current
            if slot.canary is not None:
                yield slot.canary

    def slot(self, name: str) -> Slot:
        """The slot of a name; raises ModelUnknown."""
        found = self.slots.get(name)
        if found is None:
            raise ModelUnknown(
                f"there is no model {name[:80]!r}: this service has {', '.join(self.slots)}"
            )
        return found

    def choose(self, name: str | None, wanted: bytes | None, request_id: str) -> Deployment:
        """The deployment that answers a request; submit to it before the loop turns again.

        `wanted` is the header X-Bundle: `current`, `canary`, or the beginning of a bundle's id.
        Without it, a canary gets its share by a hash of the request id, so that a caller who
        sends ids sees one bundle for one id. Raises ModelUnknown, NoSuchBundle, InvalidValue.
        """
        slot = self._default if name is None else self.slot(name)
        if wanted is not None:
            return _pinned(slot, wanted)
        if slot.canary is not None and _drawn(request_id, slot.canary_percent):
            return slot.canary
        return slot.current

    def start(self) -> None:
        """Start the lanes of what is open, inside the loop that serves."""
        for deployment in self:
            deployment.start()

    async def activate(self, path: Path) -> Deployment:
        """Serve the bundle at a path under its own name, in place of what serves there now.

        A canary that already serves this bundle is promoted as it is. Raises BundleRefused; the
        old bundle then goes on serving.
        """
        async with self._lock:
            fresh = await self._fresh(path)
            slot = self.slots.get(fresh.name)
            if slot is None:
                self.slots[fresh.name] = Slot(fresh)
                return self._counted(fresh, "activated")
            old, canary = slot.current, slot.canary
            if fresh is old:
                return fresh
            slot.current, slot.previous = fresh, old.folder
            slot.canary, slot.canary_percent = None, 0.0
            self._retire(old)
            if canary is not None and canary is not fresh:
                self._retire(canary)
            return self._counted(fresh, "activated")

    async def rollback(self, name: str) -> Deployment:
        """Serve the bundle before the current one again; raises NoSuchBundle, BundleRefused."""
        async with self._lock:
            slot = self.slot(name)
            if slot.previous is None:
                raise NoSuchBundle(f"model {name} has no earlier bundle to go back to")
            back = await self._fresh(slot.previous)
            if back is slot.canary:
                slot.canary, slot.canary_percent = None, 0.0
            old, slot.current, slot.previous = slot.current, back, slot.current.folder
            self._retire(old)
            return self._counted(back, "rolled_back")

    async def canary(self, path: Path, percent: float) -> Deployment:
        """Give a bundle a share of the requests of its name; raises ModelUnknown, BundleRefused.

        Asked again for the same bundle, only the share changes.
        """
        async with self._lock:
            fresh = await self._fresh(path)
            slot = self.slots.get(fresh.name)
            if slot is None or fresh is slot.current:
                if slot is None:
                    self._retire(fresh)
                raise BundleRefused(
                    f"{path.name} is of model {fresh.name}, which "
                    + ("nothing serves: activate it" if slot is None else "it serves already")
                )
            old, slot.canary, slot.canary_percent = slot.canary, fresh, percent
            if old is not None and old is not fresh:
                self._retire(old)
            return self._counted(fresh, "canary")

    async def end_canary(self, name: str) -> None:
        """Send every request to the current bundle again; raises ModelUnknown, NoSuchBundle."""
        async with self._lock:
            slot = self.slot(name)
            if slot.canary is None:
                raise NoSuchBundle(f"model {name} has no canary")
            old, slot.canary, slot.canary_percent = slot.canary, None, 0.0
            self._retire(old)

    async def remove(self, name: str) -> None:
        """Stop serving a name; raises ModelUnknown, InvalidValue for the default one."""
        async with self._lock:
            slot = self.slot(name)
            if slot is self._default:
                raise InvalidValue(f"{name} is the default model: it can be replaced, not removed")
            del self.slots[name]
            for deployment in (slot.current, slot.canary):
                if deployment is not None:
                    self._retire(deployment)

    def health(self) -> str | None:
        """None while every deployment moves, else one sentence."""
        faults = ((deployment.name, deployment.batcher.health()) for deployment in self)
        return next((f"model {name}: {fault}" for name, fault in faults if fault), None)

    async def drain(self, timeout_s: float) -> None:
        """Stop intake everywhere and finish or fail what was accepted."""
        drains = [deployment.drain(timeout_s) for deployment in self]
        await asyncio.gather(*drains, *self._leaving)

    async def _fresh(self, path: Path) -> Deployment:
        """A started deployment of the bundle at a path: an open one, or a new one."""
        path = path.resolve()
        for deployment in self:
            if deployment.folder == path:
                return deployment
        try:
            engine = await asyncio.to_thread(self._open, path, self._settings)
        except (BundleError, CatalogueError, DeviceUnavailable, SettingsInvalid) as exc:
            self._telemetry.swapped("failed")
            log.error("bundle refused", extra={"fields": {"path": str(path), "code": exc.code}})
            raise BundleRefused(f"{exc.code}: {exc.detail}; nothing has changed") from exc
        for deployment in self:
            if deployment.bundle_id == engine.manifest.bundle_id:
                engine.catalogue.close()
                return deployment
        fresh = Deployment(engine, self._settings, self._telemetry, self._clock)
        fresh.start()
        return fresh

    def _counted(self, deployment: Deployment, result: str) -> Deployment:
        self._telemetry.swapped(result)
        self._describe(deployment, serving=True)
        fields = {"model": deployment.name, "bundle_id": deployment.bundle_id}
        log.info("bundle %s", result, extra={"fields": fields})
        return deployment

    def _describe(self, deployment: Deployment, *, serving: bool) -> None:
        self._telemetry.describe_bundle(
            bundle_id=deployment.bundle_id,
            name=deployment.name,
            version=__version__,
            serving=serving,
        )
        # Only what one bundle answers can be compared with its own reference.
        only = self.only
        self._telemetry.shapes.expect(None if only is None else only.engine.manifest.reference)

    def _retire(self, deployment: Deployment) -> None:
        """Let a deployment that nothing chooses any more finish, and give its memory back."""
        self._describe(deployment, serving=False)
        task = asyncio.create_task(self._leave(deployment), name="retire")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _leave(self, deployment: Deployment) -> None:
        await deployment.drain(self._settings.drain_timeout_s)
        del deployment
        # A thread: collecting takes a tenth of a second that no request should wait for.
        await asyncio.to_thread(_give_back_memory)


def _pinned(slot: Slot, wanted: bytes) -> Deployment:
    asked = wanted.decode("latin-1")
    if not PINNED.fullmatch(asked):
        raise InvalidValue(
            f"X-Bundle must be {CURRENT}, {CANARY}, or the first 8 to 64 characters of a bundle_id"
        )
    if asked == CURRENT:
        return slot.current
    if asked == CANARY:
        if slot.canary is None:
            raise NoSuchBundle("there is no canary now: send X-Bundle: current, or no X-Bundle")
        return slot.canary
    for deployment in (slot.current, slot.canary):
        if deployment is not None and deployment.bundle_id.startswith(asked):
            return deployment
    raise NoSuchBundle(f"no bundle {asked[:64]!r} is open under this name: see /v1/models")


def _drawn(request_id: str, percent: float) -> bool:
    return zlib.crc32(request_id.encode()) % 10_000 < percent * 100


def _give_back_memory() -> None:
    """Free what the closed bundle held: cycles first, then the allocator's spare pages."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        log.debug("this C library has no malloc_trim")
