"""Writes a bundle's manifest, and moves a finished bundle from its staging folder into place.

The caller fills a hidden staging folder (`models.atomic.staging_folder`), and `publish` renames it.
So a reader never sees an unfinished bundle. A full disk or a kill leaves at most a hidden folder,
which the next seal removes.
"""

import json
import os
from pathlib import Path

from service.atomic import sync, write_text
from service.bundle.manifest import MANIFEST, POINTER, Manifest, bundle_id_of
from service.bundle.verify import hash_file


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Hash every file of the folder, then write manifest.json with `files` and `bundle_id`."""
    files = {
        path.name: hash_file(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST
    }
    body = manifest.model_copy(update={"files": files}).model_dump(mode="json")
    body["bundle_id"] = bundle_id_of(body)
    write_text(folder / MANIFEST, json.dumps(body, indent=1, ensure_ascii=False))
    return Manifest.model_validate(body)


def publish(folder: Path, bundle_id: str) -> Path:
    """Flush a staging folder, rename it to its bundle id, and let the pointer CURRENT name it.

    Returns the bundle's folder.
    """
    parent = folder.parent
    for path in folder.iterdir():
        sync(path)
    sync(folder)
    target = parent / bundle_id
    if not target.exists():  # else a bundle with the same content is there already
        os.rename(folder, target)
    write_text(parent / POINTER, f"{bundle_id}\n")
    return target
