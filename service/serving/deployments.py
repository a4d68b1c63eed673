"""Deployments: the open bundles by model name. Chooses which one answers, and replaces them.

Each name has one current bundle, and at times a canary that gets a share of the requests. To
replace a bundle, the process opens the new one beside the old one and runs every check. If they
pass, the change is recorded, and then the event loop switches one reference. The old bundle then
answers the requests that it has accepted, and is closed. Why: docs/decisions/0023.
"""

import asyncio
import contextlib
import logging
import re
import weakref
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from service.bundle.manifest import Manifest
from service.core.engine import Engine
from service.errors import (
    BundleError,
    BundleRefused,
    CatalogueError,
    CatalogueUnavailable,
    DeviceUnavailable,
    InvalidValue,
    ModelUnknown,
    NoSuchBundle,
    SettingsInvalid,
    StateUnavailable,
)
from service.memory import give_back_memory
from service.observe.telemetry import Telemetry
from service.serving.deployment import Deployment, open_changed_engine
from service.serving.pointer import still_lies_at
from service.settings.settings import Settings
from service.version import __version__

log = logging.getLogger(__name__)

CURRENT: Final = "current"
CANARY: Final = "canary"
X_BUNDLE: Final = re.compile("(current|canary|[0-9a-f]{8,64})")
"""What the header X-Bundle may hold: a word, or the first 8 to 64 characters of a bundle's id."""

RETIRE_TRIES: Final = 3
"""How often closing a bundle is tried. A choice: what has failed so often stays open until the
process ends, and holds memory only."""


FREE_AFTER_S: Final = (0.0, 0.5, 2.0, 8.0)
"""Pauses before each try to free a closed bundle. A choice: a request that is still being answered,
or the change itself, may refer to it for a moment, and nothing would free it later but a full
collection, which comes hours apart."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The deployments of one model name.

    `previous` is the bundle folder that `rollback` opens again. `canary_percent` is the canary's
    share of the requests, from 0 to 100.
    """

    current: Deployment
    canary: Deployment | None = None
    canary_percent: float = 0.0
    previous: Path | None = None


Slots = Mapping[str, Slot]
"""Every model's slot by its name, the default model first."""

OpenBundle = Callable[[Path, Settings], Engine]
"""Opens a bundle folder with its label changes; may block."""

Record = Callable[[Slots], Awaitable[None]]
"""Stores the slots that are about to be in force; raises StateUnavailable where it cannot."""


class Deployments:
    """All slots of a process. For the event loop's thread; a lock lets one change run at a time.

    The first engine's model is the default one. Raises SettingsInvalid where two engines have one
    name.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        settings: Settings,
        telemetry: Telemetry,
        clock: Callable[[], float],
        open_: OpenBundle = open_changed_engine,
    ) -> None:
        first, *more = (Deployment(engine, settings, telemetry, clock) for engine in engines)
        self.slots: Slots = {first.name: Slot(first)}
        self._default_name = first.name
        self._settings = settings
        self._telemetry = telemetry
        self._clock = clock
        self._open = open_
        self._record: Record | None = None
        self._lock = asyncio.Lock()
        self._retirements: set[asyncio.Task[None]] = set()
        for other in more:
            if other.name in self.slots:
                raise SettingsInvalid(
                    f"two bundles are of model {other.name}: name one, and give the other a share "
                    "as a canary"
                )
            self.slots = {**self.slots, other.name: Slot(other)}
        self._default = self.slots[first.name]
        for deployment in self:
            self._describe(deployment, serving=True)

    @property
    def default(self) -> Deployment:
        """The deployment that answers requests that name no model, canary aside."""
        return self._default.current

    @property
    def only(self) -> Deployment | None:
        """The deployment that answers every request; None where several could."""
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
        """The slot of a model name; raises ModelUnknown."""
        slot = self.slots.get(name)
        if slot is None:
            raise ModelUnknown(
                f"there is no model {name[:80]!r}: this service has {', '.join(self.slots)}"
            )
        return slot

    def choose(self, name: str | None, x_bundle: bytes | None, request_id: str) -> Deployment:
        """The deployment that answers a request. Submit to it without an await in between.

        `x_bundle` is the header X-Bundle: `current`, `canary`, or the beginning of a bundle's id.
        Without it, a hash of the request id decides whether the canary answers. So one request id
        always reaches the same bundle. Raises ModelUnknown, NoSuchBundle, InvalidValue.
        """
        slot = self._default if name is None else self.slot(name)
        if x_bundle is not None:
            return _named_by(x_bundle, slot)
        if slot.canary is not None and _goes_to_canary(request_id, slot.canary_percent):
            return slot.canary
        return slot.current

    def start(self) -> None:
        """Start the lanes of every deployment on the running event loop."""
        for deployment in self:
            deployment.start()

    @contextlib.contextmanager
    def recorded_by(self, record: Record) -> Iterator[None]:
        """Within this block no change is in force before `record` has stored it."""
        self._record = record
        try:
            yield
        finally:
            self._record = None

    async def activate(self, path: Path) -> Deployment:
        """Make the bundle at a path the current one of its model.

        If the bundle is the canary, its deployment becomes the current one as it is. Raises
        BundleRefused where the bundle fails a check, StateUnavailable where the change cannot be
        recorded; the old bundle then goes on serving.
        """
        async with self._lock, self._opened(path) as deployment:
            slot = self.slots.get(deployment.name)
            if slot is None:
                after = Slot(deployment)
            elif deployment is slot.current:
                return deployment
            else:
                after = Slot(deployment, previous=slot.current.folder)
            await self._change({**self.slots, deployment.name: after})
            return self._report_change(deployment, "activated")

    async def rollback(self, name: str) -> Deployment:
        """Make the previous bundle the current one again.

        Raises ModelUnknown, NoSuchBundle, BundleRefused, StateUnavailable.
        """
        async with self._lock:
            slot = self.slot(name)
            if slot.previous is None:
                raise NoSuchBundle(f"model {name} has no earlier bundle to go back to")
            async with self._opened(slot.previous) as back:
                after = replace(slot, current=back, previous=slot.current.folder)
                if back is slot.canary:
                    after = replace(after, canary=None, canary_percent=0.0)
                await self._change({**self.slots, name: after})
                return self._report_change(back, "rolled_back")

    async def canary(self, path: Path, percent: float) -> Deployment:
        """Make the bundle at a path the canary of its model, with `percent` of the requests.

        If it is the canary already, only its share changes. Raises BundleRefused where the bundle
        fails a check, where its model has no current bundle, or where it is the current one, and
        StateUnavailable where the change cannot be recorded.
        """
        async with self._lock, self._opened(path) as deployment:
            slot = self.slots.get(deployment.name)
            if slot is None or deployment is slot.current:
                raise BundleRefused(
                    f"{path.name} is of model {deployment.name}, which "
                    + ("nothing serves: activate it" if slot is None else "it serves already")
                )
            after = replace(slot, canary=deployment, canary_percent=percent)
            await self._change({**self.slots, deployment.name: after})
            return self._report_change(deployment, "canary")

    async def end_canary(self, name: str) -> None:
        """Send every request to the current bundle again.

        Raises ModelUnknown, NoSuchBundle, StateUnavailable.
        """
        async with self._lock:
            slot = self.slot(name)
            if slot.canary is None:
                raise NoSuchBundle(f"model {name} has no canary")
            after = replace(slot, canary=None, canary_percent=0.0)
            await self._change({**self.slots, name: after})

    async def remove(self, name: str) -> None:
        """Stop serving a model.

        Raises ModelUnknown, InvalidValue for the default model, StateUnavailable.
        """
        async with self._lock:
            self.slot(name)
            if name == self._default_name:
                raise InvalidValue(f"{name} is the default model: it can be replaced, not removed")
            await self._change({other: s for other, s in self.slots.items() if other != name})

    def set_previous(self, name: str, previous: Path | None) -> None:
        """Say which bundle folder `rollback` opens; raises ModelUnknown."""
        self._put_in_force({**self.slots, name: replace(self.slot(name), previous=previous)})

    def health(self) -> str | None:
        """None while every deployment works, else a sentence on the first that does not."""
        faults = ((deployment.name, deployment.batcher.health()) for deployment in self)
        return next((f"model {name}: {fault}" for name, fault in faults if fault), None)

    async def drain(self, timeout_s: float) -> None:
        """Stop intake everywhere, and answer or fail all accepted requests within `timeout_s`."""
        drains = [deployment.drain(timeout_s) for deployment in self]
        await asyncio.gather(*drains, *self._retirements)

    def let_go(self) -> None:
        """Forget every deployment, in an application that will never answer.

        FastAPI caches the functions of routes for as long as the process lives, and these refer to
        this object. So the engines would never be freed.
        """
        self.slots = {}
        del self._default

    async def _change(self, after: Slots) -> None:
        """Record the slots, put them in force, and close what they no longer have."""
        if self._record is not None:
            await self._record(after)
        before = list(self)
        self._put_in_force(after)
        still_open = list(self)
        for deployment in before:
            if deployment not in still_open:
                self._retire(deployment)

    def _put_in_force(self, slots: Slots) -> None:
        self.slots, self._default = slots, slots[self._default_name]

    @contextlib.asynccontextmanager
    async def _opened(self, path: Path) -> AsyncIterator[Deployment]:
        """The started deployment of the bundle at a path; closed again if no slot has it then."""
        deployment = await self._open_or_reuse(path)
        try:
            yield deployment
        finally:
            if deployment not in list(self):
                self._retire(deployment)

    async def _open_or_reuse(self, path: Path) -> Deployment:
        """Return the deployment of the bundle at a path; if it is not open, open and start it."""
        path = path.resolve()
        try:
            for deployment in self:
                if deployment.folder == path and await asyncio.to_thread(
                    still_lies_at, path, deployment.bundle_id
                ):
                    return deployment
            engine = await asyncio.to_thread(self._open, path, self._settings)
        except CatalogueUnavailable as exc:
            self._telemetry.count_swap("failed")
            raise StateUnavailable(f"{exc.detail}; nothing has changed") from exc
        except (BundleError, CatalogueError, DeviceUnavailable, SettingsInvalid) as exc:
            self._telemetry.count_swap("failed")
            log.error("bundle refused", extra={"fields": {"path": str(path), "code": exc.code}})
            raise BundleRefused(f"{exc.code}: {exc.detail}; nothing has changed") from exc
        for deployment in self:
            if deployment.bundle_id == engine.manifest.bundle_id:
                engine.catalogue.close()
                return deployment
        deployment = Deployment(engine, self._settings, self._telemetry, self._clock)
        deployment.start()
        return deployment

    def _report_change(self, deployment: Deployment, result: str) -> Deployment:
        self._telemetry.count_swap(result)
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
        # A bundle's reference fits only its own answers, so there is none while two bundles answer.
        only = self.only
        self._telemetry.shapes.set_reference(
            None if only is None else only.engine.manifest.reference
        )

    def _retire(self, deployment: Deployment) -> None:
        """Close a deployment that gets no more requests, and free its memory."""
        self._describe(deployment, serving=False)
        closing = [deployment]
        task = self._telemetry.background.once("retire", lambda: self._close(closing), RETIRE_TRIES)
        self._retirements.add(task)
        task.add_done_callback(self._retirements.discard)

    async def _close(self, closing: list[Deployment]) -> None:
        if closing:
            await closing[0].drain(self._settings.drain_timeout_s)
        refs = [weakref.ref(deployment.engine.manifest) for deployment in closing]
        closing.clear()
        # Not within this task, for whose end a stop of the service waits.
        self._telemetry.background.once("free-memory", lambda: _free(refs), RETIRE_TRIES)


def _named_by(x_bundle: bytes, slot: Slot) -> Deployment:
    value = x_bundle.decode("latin-1")
    if not X_BUNDLE.fullmatch(value):
        raise InvalidValue(
            f"X-Bundle must be {CURRENT}, {CANARY}, or the first 8 to 64 characters of a bundle_id"
        )
    if value == CURRENT:
        return slot.current
    if value == CANARY:
        if slot.canary is None:
            raise NoSuchBundle("there is no canary now: send X-Bundle: current, or no X-Bundle")
        return slot.canary
    for deployment in (slot.current, slot.canary):
        if deployment is not None and deployment.bundle_id.startswith(value):
            return deployment
    raise NoSuchBundle(f"no bundle {value[:64]!r} is open under this name: see /v1/models")


def _goes_to_canary(request_id: str, percent: float) -> bool:
    # CRC-32 spreads ids evenly enough, and every worker computes the same.
    return zlib.crc32(request_id.encode()) % 10_000 < percent * 100


async def _free(refs: Sequence["weakref.ref[Manifest]"]) -> None:
    """Give memory back until nothing refers to these manifests, and so to their bundles."""
    for pause_s in FREE_AFTER_S:
        await asyncio.sleep(pause_s)
        # In a thread, because this takes a tenth of a second and requests should not wait for it.
        await asyncio.to_thread(give_back_memory)
        if not any(ref() for ref in refs):
            return
