"""Shared bundles: what a master holds open for its workers, and when those must be replaced.

The master looks where `service.serving.follow` looks: at the file of `service.serving.desired` and
at the pointer CURRENT. Where they name other bundles than it holds, it opens those and drops what
nobody wants any more. The supervisor then replaces all workers (docs/decisions/0027).
"""

import logging
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from service.bundle.verify import read_manifest
from service.core.engine import Engine
from service.errors import AstrolabeError, BundleMismatch, WorkersFailed
from service.observe.worker_metrics import MasterTelemetry
from service.process.usage import n_threads
from service.serving.deployment import open_engine, with_changes
from service.serving.desired import Desired, DesiredModel, read_desired, stamp, write_desired
from service.serving.fetching import pointer_of
from service.serving.held import HeldBundles
from service.serving.pointer import still_lies_at
from service.settings.settings import Settings

log = logging.getLogger(__name__)

SHARE: Final = "share-bundles"
RENEW: Final = "renew-workers"

Refused = dict[Path, AstrolabeError]
"""Bundle folders that could not be opened, and why."""


class SharedBundles:
    """The open bundles of a master. It opens them in its only thread, which takes seconds."""

    def __init__(
        self,
        engines: Sequence[Engine],
        settings: Settings,
        telemetry: MasterTelemetry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`engines` are of the bundles that the settings name, the default model first.

        `clock` gives seconds.
        """
        self._settings = settings
        self._telemetry = telemetry
        self._clock = clock
        self._sharing = telemetry.background.last_resort(SHARE)
        self._renewing = telemetry.background.last_resort(RENEW)
        self._engines = {_folder_of(engine): engine for engine in engines}
        first, *_ = folders = list(self._engines)
        names = [engine.manifest.name for engine in engines]
        models = {name: DesiredModel(str(f)) for name, f in zip(names, folders, strict=True)}
        self._default_name = names[0]
        self._desired = Desired(str(first), models)
        self._pointer = pointer_of(settings, (first, engines[0].manifest.bundle_id))
        self._pointer_at_s = -math.inf
        self._file_stamp: tuple[int, int] | None = None
        self._rest_until_s = -math.inf
        self._failed_at: Hashable = None
        self._workers_are_old = False

    @property
    def current(self) -> list[Engine]:
        """The engine of every model's current bundle, the default model first."""
        return [self._engines[Path(model.bundle)] for model in self._desired.models.values()]

    @property
    def held(self) -> HeldBundles:
        """What a worker that is forked now gets."""
        return HeldBundles(self._engines, self._pointer.followed)

    def open_choice(self) -> None:
        """Before the first fork: open what the file names, if it still counts."""
        self.due()
        self._workers_are_old = False

    def due(self) -> bool:
        """Open what is wanted and not held; returns whether the workers hold something else.

        Errors are logged and counted. After one it rests, for pauses that double, unless the file
        or the pointer changes.
        """
        looked_at = self._stamps()
        if self._clock() < self._rest_until_s and looked_at == self._failed_at:
            return False
        try:
            self._catch_up()
        except Exception as exc:  # whatever it is, the workers go on with what they have
            self._rest(self._sharing.failed(exc), looked_at)
        else:
            self._sharing.worked()
        return self._workers_are_old

    def ended(self, succeeded: bool) -> None:
        """A renewal of the workers has ended. Where it failed, another one is due after a pause."""
        self._telemetry.count_renewal("succeeded" if succeeded else "failed")
        if succeeded:
            self._workers_are_old = False
            self._renewing.worked()
        else:
            error = WorkersFailed("a new worker ended before all of them served: see its log lines")
            self._rest(self._renewing.failed(error), self._stamps())

    def _rest(self, pause_s: float, looked_at: Hashable) -> None:
        self._rest_until_s, self._failed_at = self._clock() + pause_s, looked_at
        self._pointer_at_s = -math.inf  # the next try looks there too

    def _stamps(self) -> Hashable:
        """Something that changes with the file and with the pointer."""
        try:
            return self._stamp_of_file(), self._pointer.stamp()
        except OSError:
            return None

    def _stamp_of_file(self) -> tuple[int, int] | None:
        folder = self._settings.state_dir
        return None if folder is None else stamp(folder)

    def _catch_up(self) -> None:
        """Hold what is wanted. Raises the first fault after everything else is done."""
        faults: list[AstrolabeError] = []
        target = None
        try:
            target = self._moved_to()
        except AstrolabeError as exc:  # the file is followed all the same
            faults.append(exc)
        if target is not None or self._stamp_of_file() != self._file_stamp:
            faults += self._follow(target).values()
        if faults:
            raise faults[0]

    def _moved_to(self) -> tuple[Path, str] | None:
        """Where the pointer moved to, looked up every `watch_s`; raises BundleError."""
        every_s, now = self._settings.watch_s, self._clock()
        if not every_s or now < self._pointer_at_s:
            return None
        self._pointer_at_s = now + every_s
        return self._pointer.moved_to()

    def _follow(self, target: tuple[Path, str] | None) -> Refused:
        """Hold what the file names, and the bundle to which the pointer moved.

        Returns what was refused: a model of which a bundle is refused stays as it is. Raises
        SettingsInvalid, StateUnavailable.
        """
        engines, refused = dict(self._engines), Refused()
        while True:
            file_stamp, wanted = self._stamp_of_file(), self._wanted(target)
            if not self._open_missing(wanted, engines, refused):
                break
            # That took a while, so look at the file again: the last choice counts.
            if target is not None and target[0] in refused:
                target = None
        if target is not None:
            self._record(wanted)
            self._pointer.followed = target
            self._telemetry.count_swap("activated")
            # The workers compare what is recorded with the bundle that the settings named for them.
            self._workers_are_old = True
        self._adopt(wanted, engines, refused)
        if not refused:
            self._file_stamp = file_stamp
        return refused

    def _wanted(self, target: tuple[Path, str] | None) -> Desired:
        """What the file names where it counts, with the bundle to which the pointer moved."""
        folder, desired = self._settings.state_dir, self._desired
        file = None if folder is None else read_desired(folder)
        configured = (
            {desired.configured} if target is None else {desired.configured, str(target[0])}
        )
        if file is not None and file.configured in configured:
            default = {self._default_name: desired.models[self._default_name]}
            desired = replace(file, models=default | file.models)
        if target is None or desired.configured == str(target[0]):
            # In the second case a worker followed the pointer, and may have been told more since.
            return desired
        name, new = read_manifest(target[0]).name, str(target[0])
        before = desired.models.get(name)
        model = DesiredModel(new, previous=None if before is None else before.bundle)
        return Desired(new, {**desired.models, name: model})

    def _open_missing(self, wanted: Desired, engines: dict[Path, Engine], refused: Refused) -> bool:
        """Open what is wanted and neither open nor refused; returns whether there was any."""
        any_missing = False
        for name, model in wanted.models.items():
            for folder in _folders_of(model):
                engine = engines.get(folder)
                try:
                    if folder in refused or (
                        engine is not None and still_lies_at(folder, engine.manifest.bundle_id)
                    ):
                        continue
                    any_missing = True
                    engines[folder] = self._open(folder, name)
                except AstrolabeError as exc:
                    any_missing = True
                    refused[folder] = exc
                    self._telemetry.count_swap("failed")
        return any_missing

    def _open(self, folder: Path, name: str) -> Engine:
        """Open the bundle in a folder; raises AstrolabeError.

        RuntimeError where opening has started threads, because no worker can be forked then.
        """
        engine = open_engine(folder, self._settings)
        if engine.manifest.name != name:
            raise BundleMismatch(f"{folder} is of model {engine.manifest.name}, expected {name}")
        # A bundle that no worker could serve with its label changes and rules is refused here. The
        # workers open these again, because an open SQLite file must not cross a fork.
        changed = with_changes(engine, self._settings)
        if changed.catalogue is not engine.catalogue:
            changed.catalogue.close()
        if (threads := n_threads()) > 1:
            raise RuntimeError(f"{threads} threads run since {folder} is open: no worker can fork")
        return engine

    def _record(self, wanted: Desired) -> None:
        """Write to the file that the pointer was followed; raises StateUnavailable."""
        folder = self._settings.state_dir
        if folder is not None and read_desired(folder) != wanted:
            write_desired(folder, wanted)

    def _adopt(self, wanted: Desired, engines: Mapping[Path, Engine], refused: Refused) -> None:
        """Hold the wanted bundles and no others. A model that was refused stays as it is."""
        models: dict[str, DesiredModel] = {}
        for name, model in wanted.models.items():
            if not refused.keys() & _folders_of(model):
                models[name] = model
            elif name in self._desired.models:
                models[name] = self._desired.models[name]
        before = _ids(self._engines)
        self._desired = replace(wanted, models=models)
        folders = {folder for model in models.values() for folder in _folders_of(model)}
        self._engines = {folder: engines[folder] for folder in folders}
        if (after := _ids(self._engines)) != before:
            self._workers_are_old = True
            fields = {"bundle_ids": sorted(after.values())}
            log.info("the master holds other bundles", extra={"fields": fields})


def _folder_of(engine: Engine) -> Path:
    if engine.folder is None:
        raise ValueError("an engine without a folder cannot be shared")
    return engine.folder


def _folders_of(model: DesiredModel) -> set[Path]:
    """The folders of the bundles that answer for a model."""
    return {Path(folder) for folder in (model.bundle, model.canary) if folder}


def _ids(engines: Mapping[Path, Engine]) -> dict[Path, str]:
    return {folder: engine.manifest.bundle_id for folder, engine in engines.items()}
