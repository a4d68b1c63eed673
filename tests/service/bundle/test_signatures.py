"""What counts as signed, and which key files are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.bundle.manifest import SIGNATURES, bundle_id_of
from service.bundle.signatures import MAX_KEY_FILE_BYTES, read_bundle_keys
from service.bundle.verify import verify
from service.errors import BundleUnsigned, ManifestInvalid, SettingsInvalid
from tests.support.signing import REFUSED, TAKEN, Scene


@pytest.fixture
def scene(tiny_bundle: Path, tmp_path: Path) -> Scene:
    return Scene(tiny_bundle, tmp_path)


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_trusted_key_signed_is_refused_with_the_folder_and_what_to_do(
    scene: Scene, case: str
) -> None:
    act, words = REFUSED[case]
    act(scene)
    with pytest.raises(BundleUnsigned) as refusal:
        verify(scene.bundle, read_bundle_keys(scene.trusted))
    assert words in refusal.value.detail
    assert f"python -m models sign --bundle {scene.bundle} --key" in refusal.value.detail


@pytest.mark.parametrize("case", TAKEN)
def test_one_right_signature_by_a_trusted_key_is_enough(scene: Scene, case: str) -> None:
    TAKEN[case](scene)
    keys = read_bundle_keys(scene.trusted)
    assert verify(scene.bundle, keys).name == "tiny"
    assert verify(scene.bundle).name == "tiny", "without keys nobody looks at signatures"


def test_keys_are_exchanged_without_a_moment_that_refuses(scene: Scene) -> None:
    old, new = scene.old.public, scene.new.public
    scene.signed_by(scene.old)
    assert verify(scene.bundle, read_bundle_keys([old]))
    assert verify(scene.bundle, read_bundle_keys([old, new]))
    scene.signed_by(scene.new)
    assert verify(scene.bundle, read_bundle_keys([old, new]))
    assert verify(scene.bundle, read_bundle_keys([new]))


def test_a_manifest_cannot_list_its_own_signatures(scene: Scene) -> None:
    manifest = json.loads(scene.manifest.read_text())
    manifest["files"][SIGNATURES] = manifest["files"]["MODEL_CARD.md"]
    scene.manifest.write_text(json.dumps(manifest | {"bundle_id": bundle_id_of(manifest)}))
    with pytest.raises(ManifestInvalid, match="is not a file name"):
        verify(scene.bundle)


def pem_of_another_kind(scene: Scene) -> bytes:
    key = generate_private_key(65537, 2048).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


KEY_FILES: dict[str, tuple[Callable[[Scene], bytes], str]] = {
    "empty": (lambda s: b"", "holds no whole public key"),
    "not text": (lambda s: b"\xff\xfe", "is not UTF-8"),
    "too long": (lambda s: b" " * (MAX_KEY_FILE_BYTES + 1), f"over {MAX_KEY_FILE_BYTES} bytes"),
    "a private key": (lambda s: s.old.private.read_bytes(), "is a private key"),
    "another kind": (pem_of_another_kind, "is a public key of another kind"),
    "cut": (lambda s: s.old.public.read_bytes()[:-9], "holds no whole public key"),
    "one whole, one cut": (lambda s: s.old.public.read_bytes() * 2 + b"-----BEGIN ", "part of one"),
    "garbage inside": (
        lambda s: s.old.public.read_bytes().replace(b"MCow", b"????"),
        "cannot be read as a public key",
    ),
}


@pytest.mark.parametrize("case", KEY_FILES)
def test_a_wrong_key_file_is_named(scene: Scene, case: str, tmp_path: Path) -> None:
    content, words = KEY_FILES[case]
    path = tmp_path / "keys.pem"
    path.write_bytes(content(scene))
    with pytest.raises(SettingsInvalid) as refusal:
        read_bundle_keys([scene.old.public, path])
    assert str(path) in refusal.value.detail
    assert words in refusal.value.detail


def test_several_keys_in_one_file_a_byte_order_mark_and_words_between_are_read(
    scene: Scene, tmp_path: Path
) -> None:
    path = tmp_path / "keys.pem"
    keys = b"the new one:\r\n".join(a.public.read_bytes() for a in (scene.old, scene.new))
    path.write_bytes(b"\xef\xbb\xbf" + keys)
    assert len(read_bundle_keys([path]) or {}) == 2
