"""Guard: whether a caller may ask for this, here and now. The gate asks it before any route does.

Keys and their names, the admin's key and port, and the rate of each caller. It knows nothing of
bodies, deadlines or answers.
"""

import contextlib
import functools
import ipaddress
from collections.abc import Callable
from typing import Final

from starlette.types import Scope

from service.errors import Forbidden, NotFound, RateLimited, Unauthorized
from service.gate.keys import Keyring
from service.gate.rate_limit import RateLimit
from service.settings.edge import ADMIN_KEY, EdgeSettings

OPEN_PATHS: Final = frozenset({"/", "/livez", "/readyz", "/metrics", "/openapi.json"})
OPEN_PREFIXES: Final = ("/docs", "/problems/", "/ui/", "/v2/health/")
ADMIN_PREFIX: Final = "/admin/"
LABELS_PREFIX: Final = "/v1/label"
CHANGING_METHODS: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
METRICS_PATH: Final = "/metrics"
PROBES: Final = frozenset({"/livez", "/readyz", METRICS_PATH})


class Guard:
    """The rules of one service, from its settings. `clock` is what rates are measured by."""

    def __init__(self, settings: EdgeSettings, clock: Callable[[], float]) -> None:
        keys = settings.named_keys()
        self._keys_needed = bool(keys)
        self._admin_key_set = settings.admin_key is not None
        if settings.admin_key is not None:
            keys[ADMIN_KEY] = settings.admin_key.get_secret_value()
        self._keys = Keyring(keys)
        self._known = bool(keys)
        self._admin_port = settings.admin_port
        self._metrics_port = settings.metrics_port
        self._rate = (
            RateLimit(settings.rate_limit_per_s, settings.rate_burst, clock)
            if settings.rate_limit_per_s is not None
            else None
        )
        self._ports_differ = not (settings.admin_port is settings.metrics_port is None)
        self.idle = not keys and self._rate is None and not self._ports_differ
        """No rule but one can refuse anything: what needs an admin key is off."""

    def name_of(self, authorization: bytes) -> str:
        """The name of the caller's key, "" without one that is known."""
        if authorization and self._known:
            return self._keys.name_of(authorization) or ""
        return ""

    def admit(self, scope: Scope, name: str) -> None:
        """Return where the caller of this key, "" for none, may ask for this now.

        Raises Unauthorized, Forbidden, NotFound, RateLimited.
        """
        path: str = scope["path"]
        admin = needs_admin(scope["method"], path)
        if self._ports_differ:
            self._check_port(scope, path, admin)
        if not admin and (path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)):
            return
        if admin:
            self._check_admin(name, scope)
        elif not name and self._keys_needed:
            self._refuse_key(scope)
        if self._rate is not None:
            self._spend(name or _client_of(scope))

    def _check_port(self, scope: Scope, path: str, admin: bool) -> None:
        server = scope.get("server")
        port = server[1] if server is not None else None
        if path == METRICS_PATH and self._metrics_port is not None:
            right = port == self._metrics_port
        elif path in PROBES:
            right = True
        elif self._admin_port is not None and admin:
            right = port == self._admin_port
        else:
            right = port is None or port not in (self._admin_port, self._metrics_port)
        if not right:
            raise NotFound(f"there is no route {path[:200]!r} on this port")

    def _check_admin(self, name: str, scope: Scope) -> None:
        if not self._admin_key_set:
            raise Forbidden("this needs an admin key, and none is set: set ASTROLABE_ADMIN_KEY")
        if not name:
            self._refuse_key(scope)
        if name != ADMIN_KEY:
            raise Forbidden("this needs the admin key: the one sent is another caller's")

    def _refuse_key(self, scope: Scope) -> None:
        if self._rate is not None:
            self._spend(_client_of(scope))  # guessing keys is limited as asking is
        raise Unauthorized("send the header Authorization: Bearer KEY with a valid key")

    def _spend(self, caller: str) -> None:
        wait_s = self._rate.wait_s(caller) if self._rate is not None else 0.0
        if wait_s:
            raise RateLimited(
                f"too many requests: the next one is admitted in {wait_s:.3g} s",
                retry_after_s=wait_s,
            )


def needs_admin(method: str, path: str) -> bool:
    """Whether a request may be made with the admin key only.

    >>> needs_admin("GET", "/v1/labels/a"), needs_admin("DELETE", "/v1/labels/a")
    (False, True)
    """
    if path.startswith(LABELS_PREFIX):
        return method in CHANGING_METHODS
    return path.startswith(ADMIN_PREFIX)


def _client_of(scope: Scope) -> str:
    client = scope.get("client")
    return _network(client[0]) if client else "from nowhere"


@functools.lru_cache(4096)
def _network(host: str) -> str:
    """The address, or for IPv6 its first 64 bits: one customer has all the rest.

    A key's name has no space, so it can never be taken for one of these.
    """
    if ":" in host:
        with contextlib.suppress(ValueError):
            host = str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))
    return f"from {host}"
