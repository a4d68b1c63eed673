"""Pushes a sealed bundle to an object store, where services fetch it from, and pulls one back.

    <URL>/<bundle id>/...       the files, then the signatures, then the manifest
    <URL>/CURRENT               the pointer, which moves last

A reader never sees half a bundle, because it reads the manifest first and checks the rest by it.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from models.errors import PushError
from service.atomic import write_text
from service.bundle.cache import BundleCache
from service.bundle.manifest import MANIFEST, POINTER, SIGNATURES
from service.bundle.object_store import ObjectStore
from service.bundle.source import fetch
from service.bundle.verify import MAX_MANIFEST_BYTES, MAX_POINTER_BYTES, resolve, verify


def push(path: Path, url: str, report: Callable[[str], None] = lambda line: None) -> str:
    """Push the bundle at a path, or the one that its CURRENT names; returns its id.

    What the store has of it already is not sent again once its manifest is there. The pointer moves
    only if nobody else has moved it meanwhile. `report` takes a line for each file. Raises
    BundleError, SettingsInvalid, and PushError where another push moved the pointer first.
    """
    folder = resolve(path).resolve()
    manifest = verify(folder)
    store = ObjectStore(url, create=True)
    before = store.read(POINTER, MAX_POINTER_BYTES)
    prefix = f"{manifest.bundle_id}/"
    there = store.read(prefix + MANIFEST, MAX_MANIFEST_BYTES)
    names = [] if there is not None else sorted(manifest.files)
    # Signatures may have been added since an earlier push.
    names += [SIGNATURES] if (folder / SIGNATURES).exists() else []
    names += [] if there is not None else [MANIFEST]
    for name in names:
        report(f"{url}/{prefix}{name}  {(folder / name).stat().st_size:,} bytes")
        store.write(prefix + name, folder / name)
    if not store.swap(POINTER, f"{manifest.bundle_id}\n".encode(), before):
        winner = store.read(POINTER, MAX_POINTER_BYTES)
        other = "nothing" if winner is None else winner.data.decode("utf-8", "replace").strip()
        raise PushError(
            f"{url}/{POINTER} was moved to {other[:80]} while {manifest.bundle_id} was pushed: it "
            "stays there; push again if yours is to be served"
        )
    return manifest.bundle_id


def pull(url: str, folder: Path) -> Path:
    """Fetch the bundle that a URL names into a folder of bundles, and let its CURRENT name it.

    Returns the bundle's folder. Raises what `fetch` raises.
    """
    bundle = fetch(url, BundleCache(folder))
    write_text(folder / POINTER, f"{bundle.name}\n")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(folder / ".lock")
    return bundle
