"""Detached signatures of a bundle: they say who sealed it, where hashes say only what was sealed.

`manifest.sig` holds a signature a line: the id of a key, a space, and the Ed25519 signature
(RFC 8032) of the bytes of manifest.json in base64. The manifest lists the hash of every other file,
so a signature of it covers the whole bundle. Several keys may sign one bundle, so that keys can be
exchanged. `models.seal.signing` writes the file, `service.bundle.verify` has it checked.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from service.bundle.manifest import MANIFEST, SIGNATURES
from service.bundle.plain_files import read_plain
from service.errors import BundleUnsigned, FileCorrupt, FileMissing, SettingsInvalid
from service.regular_files import read_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

MAX_SIGNATURES: Final = 16
"""A choice: keys are exchanged two at a time."""
MAX_SIGNATURES_BYTES: Final = 4096
"""A choice: twice what `MAX_SIGNATURES` lines take."""
MAX_KEY_FILE_BYTES: Final = 1 << 16
"""A choice: room for 500 public keys of 113 bytes, and a bound against a wrong path."""

_ID_DIGITS = 16
_LINE = re.compile(rf"([0-9a-f]{{{_ID_DIGITS}}}) ([A-Za-z0-9+/]{{86}}==)")
_PEM = re.compile("-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \\1-----", re.DOTALL)
_BEGIN = "-----BEGIN "
_PUBLIC = "PUBLIC KEY"

BundleKeys = Mapping[str, "Ed25519PublicKey"]
"""The public keys that are trusted, by their ids; never empty."""


def read_bundle_keys(paths: Sequence[Path]) -> BundleKeys | None:
    """The Ed25519 public keys in PEM files; None where no file is named.

    Raises SettingsInvalid, which names the file.
    """
    if not paths:
        return None
    return {id_: key for path in paths for id_, key in _read_keys_file(path).items()}


def check_signature(folder: Path, manifest: bytes, keys: BundleKeys) -> None:
    """Raise BundleUnsigned unless one of `keys` signed these bytes of the folder's manifest."""
    signature_by_id = read_signatures(folder)
    trusted = [id_ for id_ in signature_by_id if id_ in keys]
    if not trusted:
        raise BundleUnsigned(
            f"{folder / SIGNATURES} is by the keys {', '.join(signature_by_id)}, but trusted are "
            f"{', '.join(keys)}: add the public key to the files of bundle_keys, or {_how(folder)}"
        )
    from cryptography.exceptions import InvalidSignature

    for id_ in trusted:
        try:
            keys[id_].verify(signature_by_id[id_], manifest)
        except InvalidSignature:
            continue
        return
    raise BundleUnsigned(
        f"{folder / MANIFEST} is not what {', '.join(trusted)} signed: it or {SIGNATURES} was "
        f"changed, or is of another bundle: take it from its author again, or {_how(folder)}"
    )


def read_signatures(folder: Path) -> dict[str, bytes]:
    """The signatures (64 bytes) beside a manifest by the ids of their keys, at least one.

    Nothing says yet that they are right. Raises BundleUnsigned where there are none, or where the
    file is not plain, too long, or breaks its format.
    """
    path = folder / SIGNATURES
    try:
        raw = read_plain(path, MAX_SIGNATURES_BYTES)
    except FileMissing:
        raise BundleUnsigned(
            f"{folder} is not signed, {SIGNATURES} is not there: if you trust it, {_how(folder)}"
        ) from None
    except FileCorrupt as exc:
        raise BundleUnsigned(f"{exc.detail}: remove it, and {_how(folder)}") from exc
    matches = [_LINE.fullmatch(line) for line in raw.decode("ascii", "replace").splitlines()]
    signature_by_id = {match[1]: base64.b64decode(match[2]) for match in matches if match}
    if not 0 < len(signature_by_id) == len(matches) <= MAX_SIGNATURES:
        raise BundleUnsigned(
            f"{path} does not hold 1 to {MAX_SIGNATURES} lines, each with a key's id and its "
            f"signature: remove it, and {_how(folder)}"
        )
    return signature_by_id


def format_signatures(signature_by_id: Mapping[str, bytes]) -> str:
    """The content of manifest.sig for these signatures."""
    return "".join(
        f"{id_} {base64.b64encode(signature).decode()}\n"
        for id_, signature in signature_by_id.items()
    )


def key_id(key: "Ed25519PublicKey") -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a public key in DER (RFC 8410)."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:_ID_DIGITS]


def read_private_key(path: Path) -> "Ed25519PrivateKey":
    """The Ed25519 private key in a PEM file; raises SettingsInvalid, which names the file."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = _read_pem(path)
    try:
        key = load_pem_private_key(text.encode(), password=None)
    except TypeError as exc:
        raise SettingsInvalid(
            f"{path} is encrypted: decrypt it first, with `openssl pkey -in {path} -out PLAIN`"
        ) from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise SettingsInvalid(f"{path} holds no private key in PEM: {_MAKE}") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsInvalid(f"{path} holds a private key of another kind: {_MAKE}")
    return key


_MAKE = "make one with `openssl genpkey -algorithm ed25519 -out KEY.pem`"
_MAKE_PUBLIC = "make it with `openssl pkey -in KEY.pem -pubout -out PUBLIC.pem`"


def _read_keys_file(path: Path) -> dict[str, "Ed25519PublicKey"]:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    text = _read_pem(path)
    blocks = list(_PEM.finditer(text))
    if not blocks or len(blocks) != text.count(_BEGIN):
        raise SettingsInvalid(
            f"bundle_keys: {path} holds no whole public key in PEM, or part of one: {_MAKE_PUBLIC}"
        )
    keys = {}
    for place, block in enumerate(blocks, 1):
        where = f"bundle_keys: {path}, block {place},"
        if block[1] != _PUBLIC:
            raise SettingsInvalid(
                f"{where} is a {block[1].lower()}, expected a public key: {_MAKE_PUBLIC}"
            )
        try:
            key = load_pem_public_key(block[0].encode())
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise SettingsInvalid(
                f"{where} cannot be read as a public key: {_MAKE_PUBLIC}"
            ) from exc
        if not isinstance(key, Ed25519PublicKey):
            raise SettingsInvalid(f"{where} is a public key of another kind: {_MAKE}")
        keys[key_id(key)] = key
    return keys


def _read_pem(path: Path) -> str:
    try:
        return read_text(path, MAX_KEY_FILE_BYTES)
    except OSError as exc:
        raise SettingsInvalid(f"the key file {path} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise SettingsInvalid(f"the key file {exc}") from exc


def _how(folder: Path) -> str:
    return f"sign it: python -m models sign --bundle {folder} --key KEY.pem"
