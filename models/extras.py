"""Imports of packages that only an extra installs, such as peers."""

import importlib
from typing import Any

from models.errors import PeerMissing

EXTRA = "pip install 'astrolabe[peers]'"


def need(module: str, install: str = EXTRA) -> Any:
    """Import `module` and return it. Raises PeerMissing, which says how to `install` it."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as exc:  # OSError: it lacks a library of the system
        raise PeerMissing(f"{module} cannot be imported ({exc}): {install}") from exc
