"""A page of the playground in a browser, and what the browser did meanwhile."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Locator, Page, Request, Route

Alter = Callable[[dict[str, Any]], None]
Opener = Callable[..., "tuple[Page, Seen]"]


class Seen:
    """What the browser did meanwhile."""

    def __init__(self, page: Page) -> None:
        self.complaints: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.called_off: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._note)
        page.on("requestfailed", lambda request: self.called_off.append(request.failure or ""))

    def _note(self, request: Request) -> None:
        self.hosts.add(urlsplit(request.url).netloc)
        if request.url.endswith("/v1/recommend"):
            self.asked.append(json.loads(request.post_data))

    def queries(self) -> list[str]:
        return [body["query"] for body in self.asked]


def clocked(page: Page) -> None:
    """Give the page a clock that `stop` can hold; to be called before the page is opened."""
    page.clock.install(time=datetime(2026, 1, 1, tzinfo=UTC))


def stop(page: Page) -> None:
    """From here on time passes only by `page.clock.run_for`."""
    page.clock.pause_at(datetime(2026, 1, 1, 1, tzinfo=UTC))


def rows(page: Page) -> Locator:
    return page.locator("#labels li")


def altered(page: Page, path: str, alter: Alter) -> None:
    """Change the JSON that a route answers with, on its way to the page."""

    def handle(route: Route) -> None:
        answer = route.fetch()
        content = answer.json()
        alter(content)
        route.fulfill(response=answer, json=content)

    page.route(f"**{path}", handle)


def refusing(status: int, detail: str, **headers: str) -> Callable[[Route], None]:
    """A handler that answers with a problem document."""
    problem = {"title": "Refused", "detail": detail, "code": "some_code", "request_id": "r-1"}
    return lambda route: route.fulfill(status=status, json=problem, headers=headers)
