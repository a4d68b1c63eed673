"""Follower: keeps a process on the bundles that it should serve.

Looks at what another worker was told by an admin request (`service.serving.desired`), at labels
that another worker changed, and at a pointer CURRENT that a training job moves. A bundle that is
refused is not tried again until what points at it changes.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

from service.bundle.verify import resolve
from service.errors import AstrolabeError, BundleNotFound
from service.serving.deployment import Deployment
from service.serving.deployments import Deployments, Slot
from service.serving.desired import Desired, DesiredModel, read_desired, stamp, write_desired
from service.settings.settings import Settings

log = logging.getLogger(__name__)

LOOK_S: Final = 0.25
"""How often a worker looks whether another one was told to change bundles."""


class Follower:
    """Runs beside the requests of one process; `start` and `stop` inside its loop."""

    def __init__(self, deployments: Deployments, settings: Settings) -> None:
        self._deployments = deployments
        self._settings = settings
        self._folder = settings.state_dir
        self._seen: tuple[int, int] | None = None
        self._pointed = _pointed(settings.bundle)
        self._tasks: list[asyncio.Task[None]] = []
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Serve what the state folder says, then keep looking."""
        if self._folder is not None:
            await self._tried(self._catch_up)
            self._tasks.append(asyncio.create_task(self._repeat(self._catch_up, LOOK_S)))
        if self._settings.watch_s:
            self._tasks.append(
                asyncio.create_task(self._repeat(self._look_at_pointer, self._settings.watch_s))
            )

    async def stop(self) -> None:
        """Look no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Around a change: up to date before it, written down after it unless it failed."""
        async with self._lock:
            if self._folder is not None:
                await self._follow()
            yield
            await self._write_down()

    async def _repeat(self, look: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            await self._tried(look)

    @staticmethod
    async def _tried(look: Callable[[], Awaitable[None]]) -> None:
        """Whatever cannot be followed, what is open goes on serving."""
        try:
            await look()
        except AstrolabeError as exc:
            log.error("cannot follow", extra={"fields": {"code": exc.code, "why": exc.detail}})

    async def _catch_up(self) -> None:
        async with self._lock:
            await self._follow()
        for deployment in list(self._deployments):
            await asyncio.to_thread(deployment.engine.catalogue.poll)

    async def _follow(self) -> None:
        assert self._folder is not None
        seen = stamp(self._folder)
        if seen is None or seen == self._seen:
            return
        self._seen = seen
        desired = await asyncio.to_thread(read_desired, self._folder)
        if desired is None:
            return
        if desired.configured != str(self._pointed):
            log.info("the settings mean another bundle now: what was chosen before is left")
            return
        for name, wanted in desired.models.items():
            await self._converge(name, wanted)
        for name in set(self._deployments.slots) - set(desired.models):
            if name != self._deployments.default.name:
                await self._deployments.remove(name)

    async def _converge(self, name: str, wanted: DesiredModel) -> None:
        deployments = self._deployments
        slot = deployments.slots.get(name)
        if slot is None or _path(slot.current) != wanted.bundle:
            await deployments.activate(Path(wanted.bundle))
        slot = deployments.slot(name)
        slot.previous = Path(wanted.previous) if wanted.previous else None
        if wanted.canary is not None:
            await deployments.canary(Path(wanted.canary), wanted.percent)
        elif slot.canary is not None:
            await deployments.end_canary(name)

    async def _look_at_pointer(self) -> None:
        pointed = await asyncio.to_thread(_pointed, self._settings.bundle)
        if pointed is None or pointed == self._pointed:
            return
        self._pointed = pointed
        async with self.changing():
            await self._deployments.activate(pointed)

    async def _write_down(self) -> None:
        if self._folder is None:
            return
        models = {name: _desired(slot) for name, slot in self._deployments.slots.items()}
        desired = Desired(str(self._pointed), models)
        await asyncio.to_thread(write_desired, self._folder, desired)
        self._seen = stamp(self._folder)


def _pointed(bundle: Path) -> Path | None:
    try:
        return resolve(bundle).resolve()
    except BundleNotFound:
        return None  # between two bundles, or not there yet


def _path(deployment: Deployment) -> str | None:
    return str(deployment.folder) if deployment.folder else None


def _desired(slot: Slot) -> DesiredModel:
    return DesiredModel(
        bundle=str(slot.current.folder),
        previous=str(slot.previous) if slot.previous else None,
        canary=str(slot.canary.folder) if slot.canary else None,
        percent=slot.canary_percent,
    )
