"""Recognises the variables that Kubernetes and Docker links put into a container for a service.

For a Service named `astrolabe` every pod of its namespace gets `ASTROLABE_PORT=tcp://10.0.0.1:8000`
and some more, for one named `astrolabe-admin` `ASTROLABE_ADMIN_PORT=tcp://...`. They look like
settings and are none (Kubernetes, "Accessing the Service", environment variables).
"""

import re
from collections.abc import Mapping
from typing import Final

_PROTOCOL = "(?:TCP|UDP|SCTP)"
_ADDRESS = r"[0-9A-Fa-f.:]+"
_URL = r"(?:tcp|udp|sctp)://(?:[0-9.]+|\[[0-9A-Fa-f:.]+\]):\d+"
_FORMS: Final = tuple(
    (re.compile(name), re.compile(value))
    for name, value in (
        (rf"\w+_PORT(_\d+_{_PROTOCOL})?", _URL),
        (rf"\w+_PORT_\d+_{_PROTOCOL}_PROTO", "tcp|udp|sctp"),
        (rf"\w+_PORT_\d+_{_PROTOCOL}_PORT", r"\d+"),
        (rf"\w+_PORT_\d+_{_PROTOCOL}_ADDR", _ADDRESS),
        (r"\w+_SERVICE_HOST", _ADDRESS),
        (r"\w+_SERVICE_PORT(_\w+)?", r"\d+"),
    )
)
"""Names of variables, each with the form of its value."""


def is_service_link(name: str, value: str) -> bool:
    """Whether a variable is one of those, by its name and its value together.

    >>> is_service_link("ASTROLABE_PORT", "tcp://10.0.0.1:8000")
    True
    >>> is_service_link("ASTROLABE_PORT", "8000")
    False
    """
    return any(n.fullmatch(name) and v.fullmatch(value) for n, v in _FORMS)


def service_links(environment: Mapping[str, str], prefix: str) -> list[str]:
    """The names of such variables with a prefix, sorted."""
    return sorted(
        name
        for name, value in environment.items()
        if name.startswith(prefix) and is_service_link(name, value)
    )
