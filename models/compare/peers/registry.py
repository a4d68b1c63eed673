"""The peers by name, and how one is built. Imports none of them: the command line reads this."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from models.errors import ComparisonError

if TYPE_CHECKING:
    from models.compare.peers.peer import Peer

PEERS = {
    "parabel": ("models.compare.peers.omikuji_trees", "parabel"),
    "bonsai": ("models.compare.peers.omikuji_trees", "bonsai"),
    "xr-linear": ("models.compare.peers.xr_linear", "XrLinear"),
    "napkinxc": ("models.compare.peers.napkinxc_plt", "NapkinPlt"),
}
NONE = "none"


def choose_peers(names: str) -> tuple[str, ...]:
    """The peers of a comma-separated list, in its order. Raises ComparisonError.

    >>> choose_peers("bonsai, parabel"), choose_peers("none")
    (('bonsai', 'parabel'), ())
    """
    if names.strip() == NONE:
        return ()
    chosen = tuple(name.strip() for name in names.split(","))
    for name in chosen:
        if name not in PEERS:
            raise ComparisonError(
                f"--peers: {name!r} is not known; there are {', '.join(PEERS)}, and {NONE}"
            )
    return tuple(dict.fromkeys(chosen))


def make_peer(name: str, folder: Path) -> "Peer":
    """The untrained peer; `folder` is empty and its own. Raises PeerMissing."""
    module, factory = PEERS[name]
    make = cast("Callable[[Path], Peer]", getattr(importlib.import_module(module), factory))
    return make(folder)
