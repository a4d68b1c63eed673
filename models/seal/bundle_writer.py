"""Writes a bundle whole or not at all: a hidden sibling is filled, flushed, renamed into place.

A reader therefore never sees half a bundle, and a full disk or a kill leaves at most a hidden
folder, which the next seal removes.
"""

import json
import os
from pathlib import Path

from service.atomic import sync, write_atomic
from service.bundle.manifest import MANIFEST, POINTER, Manifest, bundle_id_of
from service.bundle.verify import hash_file


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Hash every file of the folder, fill in `files` and `bundle_id`, write manifest.json."""
    files = {
        path.name: hash_file(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST
    }
    body = manifest.model_copy(update={"files": files}).model_dump(mode="json")
    body["bundle_id"] = bundle_id_of(body)
    write_atomic(
        folder / MANIFEST,
        lambda path: path.write_text(json.dumps(body, indent=1, ensure_ascii=False), "utf-8"),
    )
    return Manifest.model_validate(body)


def publish(folder: Path, bundle_id: str) -> Path:
    """Flush a staging folder, rename it to its bundle id, and point at it. Returns where it is."""
    parent = folder.parent
    for path in folder.iterdir():
        sync(path)
    sync(folder)
    target = parent / bundle_id
    if not target.exists():  # the same content sealed before is the same bundle
        os.rename(folder, target)
    write_atomic(parent / POINTER, lambda path: path.write_text(f"{bundle_id}\n", "utf-8"))
    return target
