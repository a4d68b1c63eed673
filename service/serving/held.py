"""Held bundles: what a master has open for its workers, which then need not open it themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.core.engine import Engine
from service.serving.deployment import open_changed_engine, with_changes
from service.serving.pointer import Target, still_lies_at
from service.settings.settings import Settings


@dataclass(frozen=True, slots=True)
class HeldBundles:
    """The engines that a worker has from its master, by bundle folder, without label changes.

    `configured` is the bundle that the settings named when the master last opened or followed it.
    """

    engines: Mapping[Path, Engine]
    configured: Target

    def open(self, folder: Path, settings: Settings) -> Engine:
        """The bundle in a folder with its label changes: the held one, else one opened anew.

        Raises what `open_changed_engine` raises.
        """
        engine = self.engines.get(folder)
        if engine is not None and still_lies_at(folder, engine.manifest.bundle_id):
            return with_changes(engine, settings)
        return open_changed_engine(folder, settings)
