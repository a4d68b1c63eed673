"""The file in `state_dir` that says which bundles to serve. All workers that share it follow it.

The worker that changes a bundle replaces the file atomically. So the workers agree, and a restart
serves the same bundles again. The file also records which bundle the settings named when it was
written. If the settings name another one now, `Follower` ignores the file, because the newer choice
counts (docs/decisions/0023).
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from service.atomic import write_atomic
from service.errors import SettingsInvalid, StateUnavailable
from service.regular_files import read_text

log = logging.getLogger(__name__)

FILE: Final = "serving.json"
MAX_BYTES: Final = 16 << 20
"""A choice: room for tens of thousands of models."""


@dataclass(frozen=True, slots=True)
class DesiredModel:
    """The bundle folders of one model name. `percent`, from 0 to 100, is the canary's share."""

    bundle: str
    previous: str | None = None
    canary: str | None = None
    percent: float = 0.0


@dataclass(frozen=True, slots=True)
class Desired:
    """The file's content: each model's bundles, and the bundle folder that the settings named."""

    configured: str
    models: dict[str, DesiredModel]


def read_desired(folder: Path) -> Desired | None:
    """Read the file; None where there is none. Raises SettingsInvalid where it is broken."""
    path = folder / FILE
    try:
        raw = json.loads(read_text(path, MAX_BYTES))
        models = {name: DesiredModel(**model) for name, model in raw["models"].items()}
        return Desired(str(raw["configured"]), models)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
        raise SettingsInvalid(
            f"{path} does not say which bundles to serve ({exc}): remove it to serve the bundles "
            "that the settings name"
        ) from exc


def write_desired(folder: Path, desired: Desired) -> None:
    """Replace the file atomically; it is on disk when this returns. Raises StateUnavailable."""
    path, text = folder / FILE, json.dumps(asdict(desired), indent=1, sort_keys=True)
    try:
        write_atomic(path, lambda temporary: temporary.write_text(text, "utf-8"))
    except OSError as exc:
        if _is_in_place(folder, desired):
            # Only the flush failed. The other workers read this file already, so it counts.
            log.warning("%s is written, but may not survive a power cut: %s", path, exc.strerror)
            return
        raise StateUnavailable(
            f"{path} cannot be written ({exc.strerror}), so nothing has changed: look at the "
            "folder, its free space and rights"
        ) from exc


def _is_in_place(folder: Path, desired: Desired) -> bool:
    try:
        return read_desired(folder) == desired
    except SettingsInvalid:
        return False


def stamp(folder: Path) -> tuple[int, int] | None:
    """The file's change time (ns) and inode, which a replacement changes; None without a file.

    Raises OSError where the folder cannot be read.
    """
    try:
        info = (folder / FILE).stat()
    except FileNotFoundError:
        return None
    return info.st_mtime_ns, info.st_ino
