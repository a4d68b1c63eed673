"""CORS: which pages of other origins may call the service from a browser. Off by default.

Browsers enforce the Fetch standard: they hide an answer from a page unless the answer names the
page's origin. Cookies are never allowed: the service sets none, and a page sends its key itself.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Scope

METHODS: Final = ("GET", "POST", "PUT", "DELETE")
REQUEST_HEADERS: Final = (
    *("Authorization", "Content-Type", "X-Bundle"),
    *("X-Request-Id", "X-Request-Priority", "X-Request-Timeout-Ms"),
)
EXPOSED_HEADERS: Final = ("X-Request-Id", "Server-Timing", "Retry-After")
PREFLIGHT_AGE_S: Final = 600
"""How long a browser may keep the answer to a preflight. Starlette's default; a change of the
allowed origins reaches every page within this time."""

OriginHeaders = tuple[tuple[bytes, bytes], ...]


class Cors:
    """The CORS headers of answers; `origins` may hold `*`, which stands for every origin."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._policy = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=REQUEST_HEADERS,
            allow_credentials=False,
            max_age=PREFLIGHT_AGE_S,
        )
        # Caches must not give the answer for one origin to a page of another one.
        self._for_others: OriginHeaders = ((b"vary", b"Origin"),)
        self._by_origin = {origin.encode(): self._allowing(origin) for origin in origins}
        if "*" in origins:
            self._for_others = self._allowing("*")

    def headers(self, origin: bytes | None) -> OriginHeaders:
        """The headers for every answer to a request with this Origin header."""
        return self._by_origin.get(origin or b"", self._for_others)

    def preflight(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Response | None:
        """The answer to a preflight, in which a browser asks what a page may send.

        None for any other request.
        """
        if scope["method"] != "OPTIONS" or b"access-control-request-method" not in headers:
            return None
        if b"origin" not in headers:
            return None
        return self._policy.preflight_response(Headers(scope=scope))

    def _allowing(self, origin: str) -> OriginHeaders:
        exposed = ", ".join(EXPOSED_HEADERS).encode()
        return (
            (b"access-control-allow-origin", origin.encode()),
            (b"access-control-expose-headers", exposed),
            *self._for_others,
        )
