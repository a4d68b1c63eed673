"""Places of bundles: a path on this machine, or a URL under which an object store keeps them."""

import re
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

from pydantic import PlainValidator

SCHEMES: Final = ("s3", "gs", "az", "https", "http", "file", "hf")
"""Of URLs that name bundles. Plain http is for a server beside the service, or with signed bundles:
docs/operations.md, Bundles by URL."""

BUNDLE_CACHE: Final = Path("~/.cache/astrolabe/bundles")
"""Where bundles of URLs are kept unless a setting says otherwise (XDG Base Directory)."""

_URL = re.compile(rf"({'|'.join(SCHEMES)})://[!-~]+")
_LOOKS_LIKE_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class BundleUrl(str):
    """A URL without credentials, query, fragment, or slash at its end."""

    __slots__ = ()


def parse_place(value: Any) -> Path | BundleUrl:
    """A URL where the text looks like one, else a path.

    Raises ValueError for a URL that cannot name bundles.
    """
    if isinstance(value, Path | BundleUrl):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("it must be a path or a URL")
    if not _LOOKS_LIKE_URL.match(value):
        return Path(value)
    url = value.rstrip("/")
    if not _URL.fullmatch(url):
        schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ValueError(f"{value[:200]!r} is no URL of bundles: begin it with one of {schemes}")
    if "@" in url.split("/")[2] or "?" in url or "#" in url:
        raise ValueError(
            "a URL of bundles takes no credentials, query or fragment: set the variables of the "
            "store's own tools, such as AWS_ACCESS_KEY_ID"
        )
    if any(part in ("", ".", "..") for part in url.partition("://")[2].split("/")[1:]):
        raise ValueError(f"{value[:200]!r} has an empty part, `.` or `..`: write the URL plainly")
    return BundleUrl(url)


Place: TypeAlias = Annotated[Path | BundleUrl, PlainValidator(parse_place)]
