"""Hashes ids to 64-bit numbers, which sorted arrays can look up.

A hash is the same in every process and on every machine. Two of ten million ids share one in about
one catalogue of 370,000 (the birthday bound), so a caller must handle the collision or accept it.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def hash_id(text: str) -> np.uint64:
    """The 64-bit BLAKE2b digest (RFC 7693) of an id's UTF-8 bytes."""
    return np.uint64(int.from_bytes(_digest(text), "little"))


def hash_ids(texts: Iterable[str]) -> NDArray[np.uint64]:
    """The hash of each id, (n,)."""
    return np.frombuffer(b"".join(map(_digest, texts)), "<u8").astype(np.uint64)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
