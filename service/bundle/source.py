"""Fetches the bundle that a URL names into a cache, and verifies it as it arrives.

A URL names a bundle, or a folder of bundles with a pointer CURRENT. The manifest comes first and
says which files follow, how long each is and what it hashes to. A file that differs is never put
where the service looks. What a killed fetch has left is hashed, and the next fetch goes on there.
"""

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from service.atomic import sync
from service.bundle.cache import FETCHING, BundleCache
from service.bundle.manifest import MANIFEST, POINTER, SIGNATURES, FileEntry, Manifest
from service.bundle.object_store import ObjectStore
from service.bundle.signatures import MAX_SIGNATURES_BYTES, BundleKeys
from service.bundle.verify import (
    MAX_MANIFEST_BYTES,
    MAX_POINTER_BYTES,
    is_file_name,
    read_manifest,
)
from service.errors import BundleNotFound, BundleUnavailable, FileCorrupt

FILES_AT_ONCE: Final = 4
"""A choice: one stream rarely fills a network card, and many small ones only contend."""

_HASH_CHUNK_BYTES = 1 << 20


def fetch(url: str, cache: BundleCache, keys: BundleKeys | None = None) -> Path:
    """Bring the bundle that a URL names into the cache, unless it is there; returns its folder.

    The mirror of the URL names it afterwards. With `keys` one of them must have signed it. Raises
    BundleUnavailable, and the errors of `read_manifest` and FileCorrupt, which name the URL.
    """
    store = ObjectStore(url)
    name = _follow_pointer(store)
    try:
        with cache.locked():
            if name is None or not cache.holds(name):
                bundle_id = _fetch(store, name, cache, keys)
            else:
                bundle_id = name
            cache.point(url, bundle_id)
    except OSError as exc:
        raise BundleUnavailable(
            f"{url} cannot be kept in {cache.folder}: {exc.strerror or exc}: look at the folder of "
            "bundle_cache, its free space and rights"
        ) from exc
    return cache.bundle(bundle_id)


def _follow_pointer(store: ObjectStore) -> str | None:
    """The folder that the pointer names; None where the URL itself is of a bundle."""
    content = store.read(POINTER, MAX_POINTER_BYTES)
    if content is None:
        return None
    name = content.data.decode("utf-8-sig", "replace").strip()
    if not is_file_name(name):
        raise BundleNotFound(
            f"{store.url}/{POINTER} holds {name[:80]!r}, expected the name of a bundle folder"
        )
    return name


def _fetch(
    store: ObjectStore, name: str | None, cache: BundleCache, keys: BundleKeys | None
) -> str:
    """Fetch the bundle under this name, or the URL's own; returns its id."""
    prefix = "" if name is None else f"{name}/"
    content = store.read(prefix + MANIFEST, MAX_MANIFEST_BYTES)
    if content is None:
        raise BundleNotFound(
            f"{store.url} holds neither {POINTER} nor {MANIFEST}: name a sealed bundle, or a "
            "folder of bundles as `python -m models push` writes it"
            if name is None
            else f"{store.url}/{POINTER} names {name}, but {name}/{MANIFEST} is not there"
        )
    signatures = store.read(prefix + SIGNATURES, MAX_SIGNATURES_BYTES)
    staging = cache.folder / f"{FETCHING}{hashlib.sha256(content.data).hexdigest()}"
    cache.drop_unfinished(but=staging.name.removeprefix(FETCHING))
    staging.mkdir(exist_ok=True)
    (staging / MANIFEST).write_bytes(content.data)
    if signatures is not None:
        (staging / SIGNATURES).write_bytes(signatures.data)
    manifest = read_manifest(staging, keys)
    if cache.holds(manifest.bundle_id):
        shutil.rmtree(staging)
        return manifest.bundle_id
    cache.make_room(_missing_bytes(staging, manifest), store.url)
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        # The largest first, so that none is left alone at the end.
        entries = sorted(manifest.files.items(), key=lambda item: -item[1].bytes)
        for future in [
            pool.submit(_fetch_file, store, prefix + file_name, staging / file_name, entry)
            for file_name, entry in entries
        ]:
            future.result()
    for path in staging.iterdir():
        sync(path)
    sync(staging)
    os.rename(staging, cache.bundle(manifest.bundle_id))
    sync(cache.folder)
    return manifest.bundle_id


def _missing_bytes(staging: Path, manifest: Manifest) -> int:
    names = [staging / name for name in manifest.files]
    there = sum(path.stat().st_size for path in names if path.exists())
    return max(0, sum(entry.bytes for entry in manifest.files.values()) - there)


def _fetch_file(store: ObjectStore, name: str, path: Path, entry: FileEntry) -> None:
    """Fetch one file, from where an earlier fetch has stopped; raises FileCorrupt.

    What the earlier fetch has left may be what is wrong: the file is then fetched anew.
    """
    has_rest = path.exists() and path.stat().st_size > 0
    digest, size = hashlib.sha256(), 0
    with path.open("ab+") as file:
        file.seek(0)
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
        if size < entry.bytes:
            for chunk in store.stream(name, size):
                size += len(chunk)
                if size > entry.bytes:
                    break
                digest.update(chunk)
                file.write(chunk)
    actual = digest.hexdigest()
    if size == entry.bytes and actual == entry.sha256:
        return
    if size < entry.bytes:  # cut off: what has come stays for the next fetch
        raise BundleUnavailable(
            f"{store.url}/{name} ended after {size} of {entry.bytes} bytes: it is cut off there, "
            "or the connection was; try again, or push the bundle again"
        )
    path.unlink()
    if has_rest:
        return _fetch_file(store, name, path, entry)
    longer = f"has over {entry.bytes} bytes" if size > entry.bytes else f"has SHA-256 {actual}"
    raise FileCorrupt(
        f"{store.url}/{name} {longer}, {MANIFEST} says {entry.bytes} bytes and {entry.sha256}: "
        "push the bundle again"
    )
