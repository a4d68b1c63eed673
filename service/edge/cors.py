"""CORS: which pages of other origins may call the service from a browser. Off by default."""

from collections.abc import Sequence
from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

METHODS: Final = ("GET", "POST", "PUT", "DELETE")
ASKED_HEADERS: Final = ("Authorization", "Content-Type", "X-Request-Id", "X-Request-Timeout-Ms")
SHOWN_HEADERS: Final = ("X-Request-Id", "Server-Timing", "Retry-After")
PREFLIGHT_AGE_S: Final = 600


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application, also for pages of these origins; itself where there are none.

    It stands outermost, because a preflight carries no key. Credentials (cookies) are never
    allowed: the service has none, keys are sent by the page itself.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=METHODS,
        allow_headers=ASKED_HEADERS,
        expose_headers=SHOWN_HEADERS,
        allow_credentials=False,
        max_age=PREFLIGHT_AGE_S,
    )
