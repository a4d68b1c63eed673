"""Keyring: whose key a header carries."""

import pytest

from service.gate.guard import Keyring

KEYS = {"shop": "sesame", "search": "Sésame", "admin": "open sesame"}


@pytest.mark.parametrize(
    ("authorization", "name"),
    [
        (b"Bearer sesame", "shop"),
        ("Bearer Sésame".encode(), "search"),
        (b"Bearer open sesame", "admin"),
        (b"bearer sesame", "shop"),  # RFC 9110: the scheme has no case
        (b"Bearer   sesame ", "shop"),
        (b"Bearer SESAME", None),  # a key has
        (b"Bearer sesame2", None),
        (b"Bearer sesam", None),
        (b"Bearer shop", None),  # a name is no key
        (b"Basic sesame", None),
        (b"sesame", None),
        (b"Bearer", None),
        (b"Bearer ", None),
        (b"", None),
        (b"Bearer \xff\xfe", None),
    ],
)
def test_a_key_tells_its_name_and_nothing_else_does(authorization: bytes, name: str | None) -> None:
    assert Keyring(KEYS).name_of(authorization) == name


def test_without_keys_nobody_has_a_name() -> None:
    assert Keyring({}).name_of(b"Bearer sesame") is None


def test_a_keyring_keeps_no_key() -> None:
    assert "sesame" not in repr(vars(Keyring(KEYS)))
