"""Lists the peers by name and builds them. The command line imports it, so it imports no peer."""

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
    """Parse a comma-separated list of peers; keep its order. Raises ComparisonError.

    >>> choose_peers("bonsai, parabel"), choose_peers("none")
    (('bonsai', 'parabel'), ())
    """
    if names.strip() == NONE:
        return ()
    peers = tuple(name.strip() for name in names.split(","))
    for name in peers:
        if name not in PEERS:
            raise ComparisonError(
                f"--peers: {name!r} is not known; there are {', '.join(PEERS)}; or use {NONE}"
            )
    return tuple(dict.fromkeys(peers))


def make_peer(name: str, folder: Path) -> "Peer":
    """Build the peer of that name, untrained. It writes its model into `folder`, which is empty.

    Raises PeerMissing where its package is not installed.
    """
    module, factory = PEERS[name]
    make = cast("Callable[[Path], Peer]", getattr(importlib.import_module(module), factory))
    return make(folder)
