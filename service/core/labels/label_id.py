"""The rule for label ids: what may be written can be addressed by its route.

An id is kept exactly as it was given, and compared letter by letter: nothing strips, folds or
normalises it. `/v1/labels/{id}` must reach it, so it holds nothing that a URL path cannot carry.
"""

import re
from typing import Final

MAX_ID_CHARS: Final = 1024
"""A choice, far above real ids. Percent-encoded an id has at most 12 KiB of a request's head."""

_CONTROL: Final = r"\u0000-\u001f\u007f-\u009f\u2028\u2029"
_UNSPEAKABLE: Final = re.compile(rf"[{_CONTROL}\ud800-\udfff]")
"""Control characters, line ends and halves of surrogate pairs: servers and proxies refuse the
first, a route's pattern ends at the second, and UTF-8 cannot write the third."""

_DOTS: Final = re.compile(r"(?:^|/)\.{1,2}(?:$|/)")
"""Clients take such a part out of a path before they send it, encoded or not (WHATWG URL, 4.4)."""

_INVISIBLE: Final = re.compile(r"[\s\u200b\ufeff]+")


ID_PATTERN: Final = rf"^[^{_CONTROL}]*[^\s{_CONTROL}\u200b\ufeff][^{_CONTROL}]*$"
"""What a pattern in OpenAPI can say of the rule, for those who generate clients and tests."""


def fault_of_id(label_id: str) -> str | None:
    """What keeps a text from being a label's id, as a phrase; None if nothing does.

    >>> fault_of_id("a/b c%2F"), fault_of_id("a/../b")
    (None, "a part '.' or '..' between slashes, which clients take out of a path")
    """
    if not label_id:
        return "no character"
    if len(label_id) > MAX_ID_CHARS:
        return f"{len(label_id)} characters, over {MAX_ID_CHARS}"
    if _UNSPEAKABLE.search(label_id):
        return "a control character, a line end or a lone surrogate"
    if _DOTS.search(label_id):
        return "a part '.' or '..' between slashes, which clients take out of a path"
    if _INVISIBLE.fullmatch(label_id):
        return "no visible character"
    return None
