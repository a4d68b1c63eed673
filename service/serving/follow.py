"""Follower: makes a process serve the same bundles and labels as the other workers.

It looks at three places, again and again. The file of `service.serving.desired` holds the bundles
that another worker was told to serve. The catalogue holds the labels that another worker changed.
The pointer CURRENT names the bundle that a training job has sealed last. If a bundle is refused,
the old one goes on serving. The follower tries again only when the file or the pointer changes.
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
"""How often a worker looks at the file and the catalogue. A choice: for this long workers may serve
different bundles after a change, and each look costs a `stat`."""


class Follower:
    """Follows from tasks on the event loop. Call `start` and `stop` inside the loop."""

    def __init__(self, deployments: Deployments, settings: Settings) -> None:
        self._deployments = deployments
        self._settings = settings
        self._folder = settings.state_dir
        self._stamp: tuple[int, int] | None = None
        self._configured = _configured_bundle(settings.bundle)
        self._tasks: list[asyncio.Task[None]] = []
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Serve the bundles that the file names, then keep looking for changes."""
        if self._folder is not None:
            await self._run_logged(self._catch_up)
            self._tasks.append(asyncio.create_task(self._repeat(self._catch_up, LOOK_S)))
        if self._settings.watch_s:
            self._tasks.append(
                asyncio.create_task(self._repeat(self._follow_pointer, self._settings.watch_s))
            )

    async def stop(self) -> None:
        """Stop looking for changes."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def changing(self, begin: Callable[[], object] = lambda: None) -> AsyncIterator[None]:
        """Surround a change of bundles with this.

        Calls `begin` when the turn of the change has come, then applies the changes of other
        workers. Writes the file afterwards, unless the change raised.
        """
        async with self._lock:
            begin()
            if self._folder is not None:
                await self._follow_file()
            yield
            await self._write()

    async def _repeat(self, look: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            await self._run_logged(look)

    @staticmethod
    async def _run_logged(look: Callable[[], Awaitable[None]]) -> None:
        """Log an error instead of raising it, so that the open bundles go on serving."""
        try:
            await look()
        except AstrolabeError as exc:
            log.error("cannot follow", extra={"fields": {"code": exc.code, "why": exc.detail}})

    async def _catch_up(self) -> None:
        async with self._lock:
            await self._follow_file()
        for deployment in list(self._deployments):
            await asyncio.to_thread(deployment.engine.catalogue.poll)

    async def _follow_file(self) -> None:
        assert self._folder is not None
        file_stamp = stamp(self._folder)
        if file_stamp is None or file_stamp == self._stamp:
            return
        self._stamp = file_stamp
        desired = await asyncio.to_thread(read_desired, self._folder)
        if desired is None:
            return
        if desired.configured != str(self._configured):
            log.info("the settings name another bundle now: ignoring the earlier choice of bundles")
            return
        for name, model in desired.models.items():
            await self._converge(name, model)
        for name in set(self._deployments.slots) - set(desired.models):
            if name != self._deployments.default.name:
                await self._deployments.remove(name)

    async def _converge(self, name: str, model: DesiredModel) -> None:
        deployments = self._deployments
        slot = deployments.slots.get(name)
        if slot is None or _folder_of(slot.current) != model.bundle:
            await deployments.activate(Path(model.bundle))
        slot = deployments.slot(name)
        slot.previous = Path(model.previous) if model.previous else None
        if model.canary is not None:
            await deployments.canary(Path(model.canary), model.percent)
        elif slot.canary is not None:
            await deployments.end_canary(name)

    async def _follow_pointer(self) -> None:
        bundle = await asyncio.to_thread(_configured_bundle, self._settings.bundle)
        if bundle is None or bundle == self._configured:
            return
        self._configured = bundle
        async with self.changing():
            await self._deployments.activate(bundle)

    async def _write(self) -> None:
        if self._folder is None:
            return
        models = {name: _desired_model(slot) for name, slot in self._deployments.slots.items()}
        desired = Desired(str(self._configured), models)
        await asyncio.to_thread(write_desired, self._folder, desired)
        self._stamp = stamp(self._folder)


def _configured_bundle(path: Path) -> Path | None:
    """The bundle folder that a path means, directly or by its pointer; None where it is missing."""
    try:
        return resolve(path).resolve()
    except BundleNotFound:
        return None  # the training job is just moving the pointer, or has not sealed a bundle yet


def _folder_of(deployment: Deployment) -> str | None:
    return str(deployment.folder) if deployment.folder else None


def _desired_model(slot: Slot) -> DesiredModel:
    return DesiredModel(
        bundle=str(slot.current.folder),
        previous=str(slot.previous) if slot.previous else None,
        canary=str(slot.canary.folder) if slot.canary else None,
        percent=slot.canary_percent,
    )
