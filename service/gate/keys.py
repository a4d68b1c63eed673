"""Keyring: whose key a request carries. Keys themselves are forgotten once it is made."""

import hashlib
import secrets
from collections.abc import Mapping


class Keyring:
    """Names by the hash of their key.

    The hash begins with a secret of this process, so a caller cannot know the hash of what it
    sends; how far a look-up by hash compares, and so how long it takes, tells nothing about any
    key. All keys cost one hash, whatever their number.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._secret = secrets.token_bytes(32)
        self._names = {self._hash(key.encode()): name for name, key in keys.items()}

    def name_of(self, authorization: bytes) -> str | None:
        """The name behind `Bearer KEY`, or None where no key of that value is known."""
        scheme, _, key = authorization.partition(b" ")
        name = self._names.get(self._hash(key.strip()))
        return name if scheme.lower() == b"bearer" else None

    def _hash(self, key: bytes) -> bytes:
        return hashlib.sha256(self._secret + key).digest()
