"""Follower: makes a process serve the same bundles and labels as the other workers.

It looks at three places, again and again. The file of `service.serving.desired` holds the bundles
that another worker was told to serve. The catalogue holds the labels that another worker changed.
The pointer CURRENT names the bundle that a training job has sealed last. If a bundle is refused,
the old one goes on serving, and the follower tries again after pauses that double: the files may
still be on their way. A new file or pointer is tried at the next look.

Where the master holds the bundles open, it follows in this worker's stead what must be opened, and
then replaces the worker (`service.process.shared_bundles`). The worker follows what it can without
opening a bundle, and everything before it makes a change of its own, which is made to all.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from service.background import Background, end
from service.errors import AstrolabeError
from service.serving.deployment import Deployment
from service.serving.deployments import Deployments, Slot, Slots
from service.serving.desired import Desired, DesiredModel, read_desired, stamp, write_desired
from service.serving.fetching import pointer_of
from service.serving.held import HeldBundles
from service.settings.settings import Settings

log = logging.getLogger(__name__)

LOOK_S: Final = 0.25
"""How often a worker looks at the file and the catalogue. A choice: for this long workers may serve
different bundles after a change, and each look costs a `stat`."""

CHOICE: Final = "follow-choice"
LABELS: Final = "follow-labels"
THE_POINTER: Final = "follow-pointer"


class Follower:
    """Follows from tasks on the event loop. Call `start` and `stop` inside the loop."""

    def __init__(
        self,
        deployments: Deployments,
        settings: Settings,
        background: Background,
        held: HeldBundles | None = None,
    ) -> None:
        """`held` are the bundles that the master holds open; None where it holds none."""
        self._deployments = deployments
        self._settings = settings
        self._background = background
        self._held = held
        self._folder = settings.state_dir
        self._stamp: tuple[int, int] | None = None
        first = deployments.default
        # What was opened counts, not what the pointer names now: it may have moved since.
        opened = (first.folder, first.bundle_id) if held is None else held.configured
        self._pointer = pointer_of(settings, opened)
        self._tasks: list[asyncio.Task[None]] = []
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Serve the bundles that the file names, then keep looking for changes."""
        background, folder = self._background, self._folder
        if folder is not None:
            await background.run(CHOICE, self._follow_choice)
            self._tasks.append(
                background.repeat(CHOICE, self._follow_choice, LOOK_S, lambda: stamp(folder))
            )
        if folder is not None or self._settings.catalogue_url is not None:
            await background.run(LABELS, self._follow_labels)
            self._tasks.append(background.repeat(LABELS, self._follow_labels, LOOK_S))
        if self._held is None and (every_s := self._settings.watch_s):
            follow = self._follow_pointer_in_turn
            self._tasks.append(background.repeat(THE_POINTER, follow, every_s, self._pointer.stamp))

    async def stop(self) -> None:
        """Stop looking for changes."""
        await end(self._tasks)

    @contextlib.asynccontextmanager
    async def changing(self, begin: Callable[[], object] = lambda: None) -> AsyncIterator[None]:
        """Surround a change of bundles with this.

        Calls `begin` when the turn of the change has come, then applies the changes of other
        workers. Within it, a change is written to the file before it is in force, and is not made
        where that fails.
        """
        async with self._lock:
            begin()
            if self._held is not None and self._settings.watch_s:
                with contextlib.suppress(AstrolabeError):  # the master follows it, and reports
                    await self._follow_pointer()
            # What the file says may be the very thing that the change is to mend.
            await self._background.run(CHOICE, self._follow_file)
            with self._deployments.recorded_by(self._record):
                yield

    async def _follow_choice(self) -> None:
        async with self._lock:
            await self._follow_file(may_open=self._held is None)

    async def _follow_labels(self) -> None:
        errors: list[Exception] = []
        for deployment in list(self._deployments):
            try:
                await asyncio.to_thread(deployment.engine.catalogue.poll)
            except Exception as exc:  # the other models' labels are followed all the same
                errors.append(exc)
        if errors:
            raise errors[0]

    async def _follow_file(self, may_open: bool = True) -> bool:
        """Serve what the file names if it is new; returns whether it was and counts.

        Where it may not open bundles, models that need one stay as they are, and the file new.
        """
        file_stamp = stamp(self._folder) if self._folder is not None else None
        if self._folder is None or file_stamp is None or file_stamp == self._stamp:
            return False
        desired = await asyncio.to_thread(read_desired, self._folder)
        if desired is None:
            return False
        if desired.configured != str(self._pointer.followed[0]):
            log.info("the settings name another bundle now: ignoring the earlier choice of bundles")
            self._stamp = file_stamp
            return False
        errors: list[AstrolabeError] = []
        models = {name: m for name, m in desired.models.items() if may_open or self._is_open(m)}
        for name, model in models.items():
            try:
                await self._converge(name, model)
            except AstrolabeError as exc:  # the other models are followed all the same
                errors.append(exc)
        for name in set(self._deployments.slots) - set(desired.models):
            if name != self._deployments.default.name:
                await self._deployments.remove(name)
        if errors:
            raise errors[0]
        if len(models) == len(desired.models):
            self._stamp = file_stamp
        return True

    def _is_open(self, model: DesiredModel) -> bool:
        """Whether this worker or its master has the model's bundles open."""
        folders = {_folder_of(deployment) for deployment in self._deployments}
        if self._held is not None:
            folders |= {str(folder) for folder in self._held.engines}
        return {model.bundle, model.canary} - {None} <= folders

    async def _converge(self, name: str, model: DesiredModel) -> None:
        deployments = self._deployments
        slot = deployments.slots.get(name)
        if slot is None or _folder_of(slot.current) != model.bundle:
            await deployments.activate(Path(model.bundle))
        deployments.set_previous(name, Path(model.previous) if model.previous else None)
        slot = deployments.slot(name)
        canary = None if slot.canary is None else _folder_of(slot.canary)
        if model.canary is None and canary is not None:
            await deployments.end_canary(name)
        elif model.canary is not None and (canary, slot.canary_percent) != (
            model.canary,
            model.percent,
        ):
            await deployments.canary(Path(model.canary), model.percent)

    async def _follow_pointer_in_turn(self) -> None:
        async with self._lock:
            await self._follow_pointer()

    async def _follow_pointer(self) -> None:
        """Serve the bundle that the pointer names, unless it was followed already."""
        target = await asyncio.to_thread(self._pointer.moved_to)
        if target is None:
            return
        before, self._pointer.followed, self._stamp = self._pointer.followed, target, None
        try:
            # Another worker may have followed the pointer already, and been told more since.
            if not await self._follow_file():
                with self._deployments.recorded_by(self._record):
                    await self._deployments.activate(target[0])
        except BaseException:
            self._pointer.followed, self._stamp = before, None
            raise

    async def _record(self, slots: Slots) -> None:
        if self._folder is None:
            return
        models = {name: _desired_model(slot) for name, slot in slots.items()}
        desired = Desired(str(self._pointer.followed[0]), models)
        await asyncio.to_thread(write_desired, self._folder, desired)
        with contextlib.suppress(OSError):  # the next look then reads the file
            self._stamp = stamp(self._folder)


def _folder_of(deployment: Deployment) -> str | None:
    return str(deployment.folder) if deployment.folder else None


def _desired_model(slot: Slot) -> DesiredModel:
    return DesiredModel(
        bundle=str(slot.current.folder),
        previous=str(slot.previous) if slot.previous else None,
        canary=str(slot.canary.folder) if slot.canary else None,
        percent=slot.canary_percent,
    )
