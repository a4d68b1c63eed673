"""Keys of authors, signatures of bundles by them, and what can be wrong with those."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from models.seal.signing import sign_bundle
from service.bundle.manifest import MANIFEST, SIGNATURES
from service.bundle.signatures import MAX_SIGNATURES
from tests.support.bundle_root import reseal


class Author:
    """A pair of keys in PEM files: `private` signs, `public` is for the service."""

    def __init__(self, folder: Path, name: str) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.private, self.public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
        pkcs8 = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.private.write_bytes(self.key.private_bytes(*pkcs8))
        spki = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.public.write_bytes(self.key.public_key().public_bytes(*spki))

    def sign(self, bundle: Path) -> Path:
        """Sign a bundle in place and return it."""
        sign_bundle(bundle, self.private)
        return bundle


Act = Callable[["Scene"], object]


class Scene:
    """A bundle that nobody has signed, beside `other` of the same model; three authors.

    The service trusts the keys `old` and `new`.
    """

    def __init__(self, tiny: Path, folder: Path) -> None:
        self.root, self._tiny, self._n_made = folder / "bundles", tiny, 0
        self.other = reseal(tiny, self.root / "other")
        self.old, self.new, self.stranger = (Author(folder, n) for n in ("old", "new", "stranger"))
        self.trusted = (self.old.public, self.new.public)
        self.make_bundle("0")

    def make_bundle(self, name: str | None = None) -> None:
        """Put an unsigned bundle with an id of its own into a folder of this name, or a new one."""
        self._n_made += 1
        self.bundle = self.root / (name or str(self._n_made))
        shutil.rmtree(self.bundle, ignore_errors=True)
        reseal(self._tiny, self.bundle, created=f"2026-03-03T00:00:{self._n_made:02d}Z")
        self.manifest, self.signatures = self.bundle / MANIFEST, self.bundle / SIGNATURES

    def signed_by(self, *authors: Author) -> None:
        for author in authors:
            author.sign(self.bundle)

    def signed_then(self, change: Callable[[Path], object]) -> None:
        self.old.sign(self.bundle)
        change(self.signatures)


def flip_a_digit(path: Path) -> None:
    text = path.read_text()
    path.write_text(text[:40] + ("A" if text[40] != "A" else "B") + text[41:])


def under_the_id_of(victim: Author, scene: Scene) -> None:
    """A stranger's signature that claims to be by a trusted key."""
    scene.signed_by(victim)
    trusted_id = scene.signatures.read_text().split()[0]
    scene.signatures.unlink()
    scene.signed_by(scene.stranger)
    signature = scene.signatures.read_text().split()[1]
    scene.signatures.write_text(f"{trusted_id} {signature}\n")


def of_the_other_bundle(scene: Scene) -> None:
    scene.old.sign(scene.other)
    shutil.copy(scene.other / SIGNATURES, scene.signatures)


def as_a_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def as_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def repeated(path: Path, times: int) -> None:
    path.write_text("".join(f"{i:016x} {'A' * 86}==\n" for i in range(times)))


REFUSED: dict[str, tuple[Act, str]] = {
    "unsigned": (lambda s: None, "is not signed"),
    "another key": (lambda s: s.signed_by(s.stranger), "but trusted are"),
    "another key under a trusted id": (lambda s: under_the_id_of(s.old, s), "is not what"),
    "a changed manifest": (
        lambda s: (s.signed_by(s.old), s.manifest.write_text(s.manifest.read_text() + "\n")),
        "is not what",
    ),
    "a changed signature": (lambda s: s.signed_then(flip_a_digit), "is not what"),
    "a signature of another bundle": (of_the_other_bundle, "is not what"),
    "an empty file": (lambda s: s.signed_then(lambda p: p.write_text("")), "does not hold"),
    "a blank line": (lambda s: s.signed_then(lambda p: p.write_text("\n")), "does not hold"),
    "a cut signature": (
        lambda s: s.signed_then(lambda p: p.write_text(p.read_text()[:-9])),
        "does not hold",
    ),
    "not text": (lambda s: s.signed_then(lambda p: p.write_bytes(b"\xff\x00")), "does not hold"),
    "a right line and a broken one": (
        lambda s: s.signed_then(lambda p: p.write_text(p.read_text() + "?\n")),
        "does not hold",
    ),
    "a key twice": (
        lambda s: s.signed_then(lambda p: p.write_text(p.read_text() * 2)),
        "does not hold",
    ),
    "too many": (lambda s: s.signed_then(lambda p: repeated(p, MAX_SIGNATURES + 1)), "not hold"),
    "a huge file": (lambda s: s.signed_then(lambda p: os.truncate(p, 1 << 40)), "bytes"),
    "a link": (lambda s: s.signed_then(as_a_link), "not a plain file"),
    "a pipe": (lambda s: s.signed_then(as_a_pipe), "not a plain file"),
    "a folder": (lambda s: s.signatures.mkdir(), "not a plain file"),
}


TAKEN: dict[str, Act] = {
    "by the old key": lambda s: s.signed_by(s.old),
    "by the new key": lambda s: s.signed_by(s.new),
    "by both": lambda s: s.signed_by(s.old, s.new),
    "by a stranger too": lambda s: s.signed_by(s.stranger, s.new),
    "twice by the same": lambda s: s.signed_by(s.old, s.old),
    "wrong by one, right by the other": lambda s: (
        s.signed_then(flip_a_digit),
        s.signed_by(s.new),
    ),
    "with the line ends of Windows": lambda s: s.signed_then(
        lambda p: p.write_bytes(p.read_bytes().replace(b"\n", b"\r\n"))
    ),
}
