"""Signs a sealed bundle: adds a line to its file of signatures, and changes nothing else in it."""

import os
from pathlib import Path

from service.atomic import staging_folder, sync
from service.bundle.manifest import MANIFEST, SIGNATURES, Manifest
from service.bundle.plain_files import read_plain
from service.bundle.signatures import (
    format_signatures,
    key_id,
    read_private_key,
    read_signatures,
)
from service.bundle.verify import MAX_MANIFEST_BYTES, read_manifest, resolve, verify


def sign_bundle(path: Path, key_file: Path) -> tuple[Manifest, list[str]]:
    """Sign the bundle at a path, or the one that its CURRENT names, with a PEM's Ed25519 key.

    Signatures by other keys stay. Returns the manifest and the ids of all keys that have signed it.
    Raises SettingsInvalid for a key file that is none, and BundleError where the bundle is not
    whole or its file of signatures is broken.
    """
    private_key = read_private_key(key_file)
    public_key = private_key.public_key()
    folder = resolve(path).resolve()
    verify(folder)
    signature_by_id = read_signatures(folder) if os.path.lexists(folder / SIGNATURES) else {}
    content = read_plain(folder / MANIFEST, MAX_MANIFEST_BYTES)
    signature_by_id[key_id(public_key)] = private_key.sign(content)
    _replace(folder, format_signatures(signature_by_id))
    return read_manifest(folder, {key_id(public_key): public_key}), list(signature_by_id)


def _replace(folder: Path, text: str) -> None:
    """Replace the file of signatures, with no other file in the bundle at any moment."""
    with staging_folder(folder.parent) as staging:
        (staging / SIGNATURES).write_text(text, "ascii")
        sync(staging / SIGNATURES)
        os.replace(staging / SIGNATURES, folder / SIGNATURES)
    sync(folder)
