"""No file that is named can hold a program up: pipes, devices, folders and endless files."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from models.config import load_config
from models.errors import ConfigError
from service.errors import AstrolabeError
from service.regular_files import read_text
from service.serving.desired import FILE, read_desired
from service.settings.settings import load_settings
from tests.support.signing import Author


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(path.parent)  # the name of a socket has room for 107 bytes
        listener.bind(path.name)


def endless(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def nothing(path: Path) -> None:
    pass


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a device": a_device,
    "a pipe": lambda path: os.mkfifo(path),
    "a folder": lambda path: path.mkdir(),
    "a socket": a_socket,
    "a file without end": endless,
    "a link into nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


def by_setting(flag: str, *others: str) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        return load_settings(["--bundle", "b", f"--{flag}", str(path), *others])

    return read


def bundle_keys(path: Path) -> object:
    from service.bundle.signatures import read_bundle_keys

    return read_bundle_keys([path])


def label_rules(path: Path) -> object:
    from service.core.catalogue.label_rules import read_label_rules

    return read_label_rules(path)


def private_key(path: Path) -> object:
    from models.seal.signing import sign_bundle

    return sign_bundle(path.parent, path)


READERS: dict[str, Callable[[Path], object]] = {
    "api_keys_file": by_setting("api-keys-file"),
    "tls_certfile": by_setting("tls-certfile"),
    "tls_keyfile": by_setting("tls-keyfile", "--tls-certfile", __file__),
    "bundle_keys": bundle_keys,
    "label_rules": label_rules,
    "the key of sign": private_key,
    "the configuration of a training": lambda path: load_config(path),
}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_at_once_and_named(
    reader: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "named"
    NO_FILES[kind](path)
    with pytest.raises((AstrolabeError, ConfigError)) as refusal:
        READERS[reader](path)
    assert any(name in str(refusal.value) for name in (str(path), os.path.realpath(path)))


# A link into nothing is the same as no file here: nothing was chosen yet.
@pytest.mark.parametrize("kind", [kind for kind in NO_FILES if kind != "a link into nothing"])
def test_the_choice_of_bundles_is_no_exception(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    NO_FILES[kind](tmp_path / FILE)
    with pytest.raises(AstrolabeError, match=FILE):
        read_desired(tmp_path)


def test_a_link_is_followed_and_a_byte_order_mark_skipped(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbfone\n")
    (tmp_path / "link").symlink_to("file")
    assert read_text(tmp_path / "link", 7) == "one\n"
    with pytest.raises(ValueError, match="has over 6 bytes"):
        read_text(tmp_path / "link", 6)
    author = Author(tmp_path, "author")
    (tmp_path / "key").symlink_to(author.public)
    assert bundle_keys(tmp_path / "key")
