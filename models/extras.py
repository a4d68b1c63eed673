"""Packages that only an extra brings: imported when they are needed, or named with the way to
install them."""

import importlib
from typing import Any

from models.errors import PeerMissing

EXTRA = "pip install 'astrolabe[peers]'"


def need(module: str, install: str = EXTRA) -> Any:
    """The module, imported now. Raises PeerMissing, which says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise PeerMissing(f"{module} cannot be imported ({exc}): {install}") from exc
