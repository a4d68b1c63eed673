"""Further headers of every request, such as a key of the service: `--header` and `--api-key-env`.

They may be secret. So they are in no plan and no result, no message shows a value, and a worker
gets them in its environment, which other users of the machine cannot read.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Final

from loadtest.errors import UsageError

VARIABLE: Final = "ASTROLABE_LOADTEST_HEADERS"
AUTHORIZATION: Final = "Authorization"
OWN: Final = (
    *("host", "user-agent", "accept", "content-type", "content-length", "connection"),
    *("transfer-encoding", "expect", "upgrade", "x-request-timeout-ms"),
)
"""Headers that the client sets itself, or on which its HTTP depends."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_VALUE = re.compile(r"[\x21-\x7e\x80-\xff]([\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?")

Headers = Mapping[str, str]


def read_headers(lines: Sequence[str], api_key_env: str | None) -> Headers:
    """The headers of the command line, by name; raises UsageError, which shows no value.

    `api_key_env` names the variable that holds a key; if it is empty, there is no key.
    """
    headers: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, _, value = line.partition(":")
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value.strip()):
            raise UsageError(
                f"--header number {number} is not of the form 'Name: value' in one line of Latin-1."
            )
        _add(headers, name, value.strip())
    if api_key_env is not None:
        key = os.environ.get(api_key_env)
        if key is None:
            raise UsageError(
                f"--api-key-env names {api_key_env[:80]}, which is not set; export it."
            )
        if key and not _VALUE.fullmatch(key):
            raise UsageError(f"{api_key_env} holds no key: a key is one line of Latin-1.")
        if key:
            _add(headers, AUTHORIZATION, f"Bearer {key}")
    return headers


def for_worker(headers: Headers) -> dict[str, str]:
    """The variables that hand the headers to a worker process."""
    return {VARIABLE: json.dumps(dict(headers))}


def of_worker() -> Headers:
    """The headers that `for_worker` handed to this process; none without them."""
    headers: dict[str, str] = json.loads(os.environ.pop(VARIABLE, "{}"))
    return headers


def _add(headers: dict[str, str], name: str, value: str) -> None:
    if name.lower() in OWN:
        raise UsageError(f"The client sets the header {name} itself; leave it out.")
    if name.lower() in map(str.lower, headers):
        raise UsageError(f"The header {name} is given twice; give it once.")
    headers[name] = value
