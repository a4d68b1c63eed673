"""Changes to a sealed bundle that somebody might make who wants to break the reader.

Each takes a `random.Random`, so hypothesis can drive it and a seed can repeat it.
"""

import contextlib
import copy
import json
import random
from typing import Any

from service.bundle.manifest import bundle_id_of

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e308, 1e-320),
    *(2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**40, 10**4000),
    *(float("nan"), float("inf"), float("-inf")),
    *("", "x", ".", "..", "/", "../../etc/passwd", "/dev/zero", "a/b", "a\\b", "C:\\x", "CON"),
    *("\x00", "a\x00b", "\n", "\u202egpj.exe", "\ud800", "\U0001f419", "e\u0301", "x" * 5000),
    *("manifest.json", "encoder.onnx", "labels.jsonl", "balanced", "exact", "hnsw", "flat"),
    *("label-tree", "learned-graph", "probability", "0" * 64, "%s%n", "${HOME}", "__proto__"),
    *([], {}, [[]], {"": ""}, [None] * 100, ["x"] * 1000),
)
SNIPPETS = (
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b":",
        b"\\",
        b"\\ud800",
        b"\\u0000",
        b"\xff",
        b"\xed\xa0",
    ),
    *(b"NaN", b"1e999", b"-Infinity", b"[" * 2000, b'{"a":' * 500, b"9" * 400, b"\xef\xbb\xbf"),
    *(b'"bundle_id":"x",', b'"files":{},', b"//", b"\x00", b" " * 3000),
)
SIZES = (0, 1, 2, 3, 127, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)


def changed_manifest(sound: dict[str, Any], rng: random.Random) -> bytes:
    """manifest.json after some changes; half of the readable ones are sealed again."""
    manifest = json.loads(json.dumps(sound))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        _change_value(manifest, rng)
    if rng.random() < 0.5 and isinstance(manifest, dict):
        with contextlib.suppress(ValueError, RecursionError):  # it cannot even be hashed
            manifest["bundle_id"] = bundle_id_of(manifest)
    raw = json.dumps(manifest, ensure_ascii=rng.random() < 0.7).encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        raw = changed_bytes(raw, rng, SNIPPETS)
    return raw


def changed_bytes(
    sound: bytes, rng: random.Random, snippets: tuple[bytes, ...] = (b"\x00", b"\xff" * 8)
) -> bytes:
    """Bytes after some of them were flipped, cut, doubled, moved in, or set to a telling number."""
    data = bytearray(sound)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        # Headers are where a few bytes matter most.
        reach = min(len(data), 400) if rng.random() < 0.6 else len(data)
        at = rng.randrange(reach) if reach else 0
        how = rng.randrange(7)
        if how == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1 and data:
            data[at] = rng.randrange(256)
        elif how == 2:
            width = rng.choice((1, 2, 4, 8))
            data[at : at + width] = (rng.choice(SIZES) % 256**width).to_bytes(width, "little")
        elif how == 3:
            del data[at : at + rng.choice((1, 2, 8, 64, len(data)))]
        elif how == 4:
            data[at:at] = rng.choice(snippets)
        elif how == 5:
            data[at:at] = data[at : at + rng.choice((1, 8, 64, 1000))]
        else:
            data += rng.choice(snippets)
    return bytes(data)


def _change_value(root: Any, rng: random.Random) -> None:
    """One change at a random place of a document, in place."""
    here = root
    while True:
        if not isinstance(here, dict | list) or not here:
            return
        key = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
        inner = here[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.15:
            break
        here = inner
    how = rng.randrange(8)
    if how <= 1:
        here[key] = copy.deepcopy(rng.choice(NASTY))
    elif how <= 3:
        alike = [value for value in NASTY if type(value) is type(here[key])]
        here[key] = copy.deepcopy(rng.choice(alike or NASTY))
    elif how == 4:
        del here[key]
    elif how == 5 and isinstance(here, dict):
        name = rng.choice(("surprise", "", "\ud800", "x" * 300, "../x"))
        here[name] = here.pop(key) if rng.random() < 0.5 else 0
    elif how == 6:
        for _ in range(rng.choice((1, 3, 40))):
            here[key] = [here[key]]
    elif isinstance(here[key], int | float):
        here[key] = here[key] * rng.choice((-1, 0, 2, 1000)) + rng.choice((0, 1, -1))
    else:
        here[key] = [here[key], here[key]]
