"""Guard: decides whether a caller may make a request now. The gate asks it before any route.

The guard knows the callers' keys, the admin key, the ports for admin and metrics, and how often
each caller has called lately. It reads neither bodies nor deadlines.
"""

import contextlib
import functools
import hashlib
import ipaddress
import secrets
from collections.abc import Callable, Mapping
from typing import Final

from starlette.types import Scope

from service.errors import Forbidden, NotFound, RateLimited, Unauthorized
from service.gate.rate_limit import RateLimit
from service.settings.edge import ADMIN_KEY, EdgeSettings

OPEN_PATHS: Final = frozenset({"/", "/livez", "/readyz", "/metrics", "/openapi.json"})
OPEN_PREFIXES: Final = ("/docs", "/problems/", "/ui/", "/v2/health/")
"""Paths that need no key: probes, documentation, and pages without a secret."""

ADMIN_PREFIX: Final = "/admin/"
LABELS_PREFIX: Final = "/v1/label"
CHANGING_METHODS: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
METRICS_PATH: Final = "/metrics"
PROBES: Final = frozenset({"/livez", "/readyz", METRICS_PATH})


class Keyring:
    """The names of the callers, by the hash of their key. The keys themselves are not stored.

    A secret of this process goes into each hash, so a caller cannot predict the hash of the key
    that it sends. The time of a look-up therefore reveals nothing about any key, and it does not
    depend on how many keys there are.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        """`keys` maps names to keys."""
        self._secret = secrets.token_bytes(32)
        self._names = {self._hash(key.encode()): name for name, key in keys.items()}

    def name_of(self, authorization: bytes) -> str | None:
        """The name of the key in `Bearer KEY` (RFC 6750); None for an unknown key."""
        scheme, _, key = authorization.partition(b" ")
        name = self._names.get(self._hash(key.strip()))
        return name if scheme.lower() == b"bearer" else None

    def _hash(self, key: bytes) -> bytes:
        return hashlib.sha256(self._secret + key).digest()


class Guard:
    """The access rules of one service. `clock` measures the rate of each caller, in seconds."""

    def __init__(self, settings: EdgeSettings, clock: Callable[[], float]) -> None:
        keys = settings.named_keys()
        self._keys_needed = bool(keys)
        self._admin_key_set = settings.admin_key is not None
        if settings.admin_key is not None:
            keys[ADMIN_KEY] = settings.admin_key.get_secret_value()
        self._keys = Keyring(keys) if keys else None
        self._admin_port = settings.admin_port
        self._metrics_port = settings.metrics_port
        self._rate = (
            RateLimit(settings.rate_limit_per_s, settings.rate_burst, clock)
            if settings.rate_limit_per_s is not None
            else None
        )
        self._ports_differ = not (settings.admin_port is settings.metrics_port is None)
        self.idle = not keys and self._rate is None and not self._ports_differ
        """True if no setting restricts callers. The gate must check requests to admin routes even
        then, because without an admin key every admin route is off."""

    def name_of(self, authorization: bytes) -> str:
        """The name of the caller's key; "" for no key or an unknown one."""
        if authorization and self._keys is not None:
            return self._keys.name_of(authorization) or ""
        return ""

    def admit(self, scope: Scope, name: str) -> None:
        """Check a request of the caller whose key has this name; "" is a caller without a key.

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
            self._spend(self._rate, name or _client_of(scope))

    def _check_port(self, scope: Scope, path: str, admin: bool) -> None:
        server = scope.get("server")
        port = server[1] if server is not None else None
        if path == METRICS_PATH and self._metrics_port is not None:
            allowed = port == self._metrics_port
        elif path in PROBES:
            allowed = True
        elif self._admin_port is not None and admin:
            allowed = port == self._admin_port
        else:
            allowed = port is None or port not in (self._admin_port, self._metrics_port)
        if not allowed:
            raise NotFound(f"there is no route {path[:200]!r} on this port")

    def _check_admin(self, name: str, scope: Scope) -> None:
        if not self._admin_key_set:
            raise Forbidden("this needs an admin key, and none is set: set ASTROLABE_ADMIN_KEY")
        if not name:
            self._refuse_key(scope)
        if name != ADMIN_KEY:
            raise Forbidden("this needs the admin key: the key sent is another caller's")

    def _refuse_key(self, scope: Scope) -> None:
        if self._rate is not None:
            self._spend(self._rate, _client_of(scope))  # guesses at keys count as requests
        raise Unauthorized("send the header Authorization: Bearer KEY with a valid key")

    @staticmethod
    def _spend(rate: RateLimit, caller: str) -> None:
        if wait_s := rate.wait_s(caller):
            raise RateLimited(
                f"too many requests: the next one is admitted in {wait_s:.3g} s",
                retry_after_s=wait_s,
            )


def needs_admin(method: str, path: str) -> bool:
    """Whether a request needs the admin key.

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
    """The caller's address; of IPv6 the first 64 bits, because one customer has all the others.

    A key's name has no space, so no address is ever taken for a key's name.
    """
    if ":" in host:
        with contextlib.suppress(ValueError):
            host = str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))
    return f"from {host}"
