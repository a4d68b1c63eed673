"""normalise(): cleans texts. Training and serving both use it.

It only removes differences that nobody sees (Unicode form, control characters, white space).
Lower-casing and splitting belong to the tokenizer, which is part of the bundle.

A text may have several fields, such as a title and a content. They are one string, in which the
unit separator of ASCII ends a field: no cleaned text holds that.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

NORMALISER: Final = "astrolabe-text"
NORMALISER_VERSION: Final = 1

FIELD_END: Final = "\x1f"

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\u2028\u2029\ufeff]+")
_SPACE = re.compile(r"\s+")


def normalise(text: str) -> str:
    """Bring a text into NFC, make control characters and runs of white space one space, and trim.

    >>> normalise("  Moby\\tDick;\\r\\n or,  the Whale ")
    'Moby Dick; or, the Whale'
    """
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()
    text = unicodedata.normalize("NFC", text)
    return _SPACE.sub(" ", _CONTROL.sub(" ", text)).strip()


def join_fields(fields: Iterable[str]) -> str:
    r"""The fields of a text as one string; empty ones at the end are left out.

    >>> join_fields(["Moby Dick", "a\x1fwhale", ""])
    'Moby Dick\x1fa whale'
    """
    return FIELD_END.join(field.replace(FIELD_END, " ") for field in fields).rstrip(FIELD_END)


def split_fields(text: str, n: int) -> list[str]:
    r"""The n fields of a text; those that it lacks are empty, and the last takes what is over.

    >>> split_fields("Moby Dick", 2)
    ['Moby Dick', '']
    """
    fields = text.split(FIELD_END, n - 1)
    return fields + [""] * (n - len(fields))
