"""Which bundles are to be served, as a small file that all workers of a machine follow.

Written whole or not at all after every change, so that a restart goes on with what was served and
workers agree. It is dropped where the configured bundle is another one than when it was written:
whoever changes the configuration means it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from service.atomic import write_atomic
from service.errors import SettingsInvalid

FILE: Final = "serving.json"


@dataclass(frozen=True, slots=True)
class DesiredModel:
    """The folders that serve under one name; `percent` is the canary's share."""

    bundle: str
    previous: str | None = None
    canary: str | None = None
    percent: float = 0.0


@dataclass(frozen=True, slots=True)
class Desired:
    """Everything to be served; `configured` is the bundle that the settings meant."""

    configured: str
    models: dict[str, DesiredModel]


def read_desired(folder: Path) -> Desired | None:
    """The file's content, None where there is none; raises SettingsInvalid where it is broken."""
    path = folder / FILE
    try:
        raw = json.loads(path.read_bytes())
        models = {name: DesiredModel(**model) for name, model in raw["models"].items()}
        return Desired(str(raw["configured"]), models)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
        raise SettingsInvalid(
            f"{path} does not say which bundles to serve ({exc}): remove it to serve what the "
            "settings name"
        ) from exc


def write_desired(folder: Path, desired: Desired) -> None:
    """Replace the file; it is on disk when this returns. Raises SettingsInvalid."""
    path, text = folder / FILE, json.dumps(asdict(desired), indent=1, sort_keys=True)
    try:
        write_atomic(path, lambda temporary: temporary.write_text(text, "utf-8"))
    except OSError as exc:
        raise SettingsInvalid(
            f"{path} cannot be written ({exc.strerror}), so a restart would not serve what is "
            "served now: look at the folder, its free space and rights"
        ) from exc


def stamp(folder: Path) -> tuple[int, int] | None:
    """What changes whenever the file does; None where there is none."""
    try:
        info = (folder / FILE).stat()
    except FileNotFoundError:
        return None
    return info.st_mtime_ns, info.st_ino
