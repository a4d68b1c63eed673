"""normalise(): cleans texts. Training and serving both use it.

It only removes differences that nobody sees (Unicode form, control characters, white space).
Lower-casing and splitting belong to the tokenizer, which is part of the bundle.
"""

import re
import unicodedata
from typing import Final

NORMALISER: Final = "astrolabe-text"
NORMALISER_VERSION: Final = 1

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
