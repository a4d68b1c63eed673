"""Writes a bundle whole or not at all: a hidden sibling is filled, flushed, renamed into place.

A reader therefore never sees half a bundle, and a full disk or a kill leaves at most a hidden
folder, which the next seal removes.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.atomic import is_running, sync, write_atomic
from service.bundle import MANIFEST, POINTER, Manifest, bundle_id_of, hash_file

_STAGING = ".staging-"


@contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A fresh hidden folder in `parent` to fill; gone afterwards unless `publish` renamed it."""
    parent.mkdir(parents=True, exist_ok=True)
    for left_over in parent.glob(f"{_STAGING}*"):
        if not is_running(left_over.name.removeprefix(_STAGING)):
            shutil.rmtree(left_over, ignore_errors=True)
    folder = parent / f"{_STAGING}{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
