"""The playground: the page at `/`, which asks /v1/recommend as you type, and the page's files.

The files lie in service/ui. The service reads them once, when it makes the application. The page
runs no inline script, and it loads from and talks to its own origin only. The header
Content-Security-Policy makes the browser enforce this.
"""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Final

from fastapi import FastAPI, Header, Response

from service.errors import NotFound

UI_PATH: Final = "/ui/"
PAGE: Final = "index.html"

_MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the page, and the headers of the answer that sends it."""

    content: bytes
    headers: dict[str, str]

    def answer(self, if_none_match: str | None) -> Response:
        """The file, or 304 if the browser's If-None-Match says that it has it (RFC 9110)."""
        if if_none_match is not None and self.headers["ETag"] in if_none_match:
            return Response(status_code=304, headers=self.headers)
        return Response(self.content, headers=self.headers)


def add_playground(app: FastAPI) -> None:
    """Serve the page at / and its files under /ui/."""
    files_by_name = _read()

    @app.get("/", include_in_schema=False)
    async def page(if_none_match: Annotated[str | None, Header()] = None) -> Response:
        return files_by_name[PAGE].answer(if_none_match)

    @app.get(UI_PATH + "{name}", include_in_schema=False)
    async def file(name: str, if_none_match: Annotated[str | None, Header()] = None) -> Response:
        if name not in files_by_name:
            raise NotFound(f"the playground has no file {name[:80]!r}")
        return files_by_name[name].answer(if_none_match)


def _read() -> dict[str, _File]:
    files_by_name: dict[str, _File] = {}
    for path in (files("service") / "ui").iterdir():
        content = path.read_bytes()
        files_by_name[path.name] = _File(
            content,
            {
                "Content-Type": _MEDIA_TYPES["." + path.name.rpartition(".")[2]],
                "Content-Security-Policy": _POLICY,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                # Browsers must revalidate, or a new page could run with an old script.
                "Cache-Control": "no-cache",
                "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
            },
        )
    return files_by_name
