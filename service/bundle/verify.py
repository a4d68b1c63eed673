"""Finds a bundle and verifies it against its manifest.

A bundle is immutable, and `models.seal.bundle_writer` writes it whole or not at all. `resolve`
follows a pointer to a bundle. `verify` checks every byte *before* any file reaches ONNX Runtime or
FAISS. `service.core.engine` then opens the parts.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from service.bundle.claims import check_claims
from service.bundle.manifest import (
    MANIFEST,
    POINTER,
    SCHEMA_VERSION,
    SIGNATURES,
    FileEntry,
    Manifest,
    bundle_id_of,
)
from service.bundle.plain_files import MAX_JSON_BYTES, open_plain, parse_object, read_plain
from service.bundle.signatures import BundleKeys, check_signature
from service.errors import (
    BundleNotFound,
    FileCorrupt,
    FileMissing,
    FileUnlisted,
    ManifestInvalid,
    SchemaVersionUnknown,
)

MAX_MANIFEST_BYTES: Final = MAX_JSON_BYTES

_UNLISTED = frozenset((MANIFEST, SIGNATURES))
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HASH_CHUNK_BYTES = 1 << 20
MAX_POINTER_BYTES: Final = 4096
"""A choice, far above a name."""


def is_file_name(name: str) -> bool:
    """Whether a file or folder of a bundle may have this name, which leads nowhere else."""
    return _FILE_NAME.fullmatch(name) is not None


def resolve(path: Path) -> Path:
    """The bundle folder at `path`: either `path` itself, or the folder that its pointer names.

    Raises BundleNotFound.
    """
    if (path / MANIFEST).is_file():
        return path
    pointer = path / POINTER
    if not pointer.is_file():
        raise BundleNotFound(
            f"{path} holds neither {MANIFEST} nor {POINTER}: name a sealed bundle, or a folder "
            "of bundles as `python -m models all` writes it"
        )
    try:
        name = read_plain(pointer, MAX_POINTER_BYTES).decode("utf-8-sig", "replace").strip()
    except (FileMissing, FileCorrupt) as exc:
        raise BundleNotFound(exc.detail) from exc
    if not is_file_name(name):
        raise BundleNotFound(f"{pointer} holds {name[:80]!r}, expected the name of a bundle folder")
    if not (path / name / MANIFEST).is_file():
        raise BundleNotFound(f"{pointer} names {name}, but {path / name / MANIFEST} is not there")
    return path / name


def read_manifest(folder: Path, keys: BundleKeys | None = None) -> Manifest:
    """Parse and check manifest.json; reads no other file than its signatures.

    With `keys` one of them must have signed these very bytes, which is checked before they are
    parsed. Raises BundleNotFound, BundleUnsigned, SchemaVersionUnknown, ManifestInvalid,
    BundleMismatch.
    """
    try:
        content = read_plain(folder / MANIFEST, MAX_MANIFEST_BYTES)
    except FileMissing as exc:
        raise BundleNotFound(exc.detail) from exc
    except FileCorrupt as exc:
        raise ManifestInvalid(exc.detail) from exc
    if keys is not None:
        check_signature(folder, content, keys)
    raw = parse_object(folder / MANIFEST, content)
    version = raw.get("schema_version")
    if version != SCHEMA_VERSION:
        raise SchemaVersionUnknown(
            f"{folder / MANIFEST}: schema_version is {version!r}, this code reads "
            f"{SCHEMA_VERSION}: serve it with the Astrolabe that sealed it, or seal it again"
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ManifestInvalid(f"{folder / MANIFEST}: field {where}: {first['msg']}") from exc
    actual = bundle_id_of(raw)
    if manifest.bundle_id != actual:
        raise ManifestInvalid(
            f"{folder / MANIFEST}: bundle_id is {manifest.bundle_id[:80]}, its content hashes to "
            f"{actual}: the manifest was changed after sealing"
        )
    for name in manifest.files:
        if not is_file_name(name) or name in _UNLISTED:
            raise ManifestInvalid(f"{folder / MANIFEST}: files: {name[:80]!r} is not a file name")
    check_claims(folder / MANIFEST, manifest)
    return manifest


def verify(folder: Path, keys: BundleKeys | None = None) -> Manifest:
    """Check that a folder holds exactly the files of its manifest: names, sizes and hashes.

    With `keys` one of them must have signed the manifest. Raises BundleNotFound, BundleUnsigned,
    SchemaVersionUnknown, ManifestInvalid, BundleMismatch, FileMissing, FileUnlisted, FileCorrupt.
    """
    manifest = read_manifest(folder, keys)
    for extra in sorted(set(_names_in(folder)) - set(manifest.files) - _UNLISTED):
        raise FileUnlisted(f"{folder / extra} is not listed in {MANIFEST}: remove it")
    for name, entry in sorted(manifest.files.items()):
        _verify_file(folder / name, entry)
    return manifest


def hash_file(path: Path, max_bytes: int | None = None) -> FileEntry:
    """The size and SHA-256 of a file; it stops reading soon after `max_bytes`.

    Raises FileMissing, and FileCorrupt if it is no plain file.
    """
    digest = hashlib.sha256()
    size = 0
    with open_plain(path) as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            if max_bytes is not None and size > max_bytes:
                break  # the file grows while it is read
    return FileEntry(sha256=digest.hexdigest(), bytes=size)


def _verify_file(path: Path, entry: FileEntry) -> None:
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size != entry.bytes:
        raise FileCorrupt(f"{path} has {size} bytes, {MANIFEST} says {entry.bytes}")
    actual = hash_file(path, entry.bytes).sha256
    if actual != entry.sha256:
        raise FileCorrupt(f"{path} has SHA-256 {actual}, {MANIFEST} says {entry.sha256}")


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as exc:
        raise BundleNotFound(f"{folder} cannot be listed: {exc.strerror}") from exc
