"""`python -m models sign`: it adds a line, changes nothing else, and names what is wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from models.__main__ import main
from service.bundle.manifest import POINTER, SIGNATURES
from service.bundle.signatures import read_bundle_keys
from service.bundle.verify import verify
from tests.support.signing import Author


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundles" / "b"))


@pytest.fixture
def author(tmp_path: Path) -> Author:
    return Author(tmp_path, "author")


def sign(bundle: Path, key: Path) -> int:
    return main(["sign", "--bundle", str(bundle), "--key", str(key)])


@pytest.mark.parametrize("by_pointer", [False, True])
def test_the_bundle_is_signed_and_nothing_else_is_left(
    bundle: Path, author: Author, by_pointer: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in bundle.iterdir()}
    (bundle.parent / POINTER).write_text("b\n")
    assert sign(bundle.parent if by_pointer else bundle, author.private) == 0
    assert "signed by" in capsys.readouterr().out
    after = {path: path.read_bytes() for path in bundle.iterdir()}
    assert after.pop(bundle / SIGNATURES)
    assert after == before
    assert sorted(path.name for path in bundle.parent.iterdir()) == [POINTER, "b"]
    assert verify(bundle, read_bundle_keys([author.public]))


def test_a_second_key_adds_a_line_and_the_same_key_does_not(
    bundle: Path, author: Author, tmp_path: Path
) -> None:
    other = Author(tmp_path, "other")
    for key in (author.private, other.private, author.private):
        assert sign(bundle, key) == 0
    assert len((bundle / SIGNATURES).read_text().splitlines()) == 2
    for key in (author.public, other.public):
        assert verify(bundle, read_bundle_keys([key]))


def rsa(author: Author) -> bytes:
    key = generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def encrypted(author: Author) -> bytes:
    lock = BestAvailableEncryption(b"secret")
    return author.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)


WRONG_KEYS: dict[str, tuple[Callable[[Author], bytes], str]] = {
    "empty": (lambda author: b"", "holds no private key in PEM"),
    "the public key": (lambda author: author.public.read_bytes(), "holds no private key in PEM"),
    "another kind": (rsa, "holds a private key of another kind"),
    "encrypted": (encrypted, "is encrypted: decrypt it first"),
    "endless": (lambda author: b"#" * (1 << 20), "bytes: name the right file"),
}


@pytest.mark.parametrize("case", WRONG_KEYS)
def test_a_wrong_key_is_named_and_nothing_is_signed(
    bundle: Path, author: Author, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, words = WRONG_KEYS[case]
    key = tmp_path / "key.pem"
    key.write_bytes(content(author))
    assert sign(bundle, key) == 1
    error = capsys.readouterr().err
    assert str(key) in error
    assert words in error
    assert not (bundle / SIGNATURES).exists()


WRONG_BUNDLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed file": (lambda b: (b / "labels.jsonl").write_text("{}"), "labels.jsonl has 2 bytes"),
    "a file too many": (lambda b: (b / "more").write_text(""), "is not listed"),
    "a broken file of signatures": (lambda b: (b / SIGNATURES).write_text("?"), "does not hold"),
    "no bundle": (lambda b: shutil.rmtree(b), "holds neither"),
}


@pytest.mark.parametrize("case", WRONG_BUNDLES)
def test_a_bundle_that_is_not_whole_is_not_signed(
    bundle: Path, author: Author, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, words = WRONG_BUNDLES[case]
    damage(bundle)
    assert sign(bundle, author.private) == 1
    assert words in capsys.readouterr().err
