"""One Chromium and one service for every test of the page; skipped where there is no Chromium."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from service.bundle.manifest import MANIFEST
from tests.support.pages import Opener, Seen
from tests.support.processes import service_process
from tests.support.tiny_bundle import seal

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A real Chromium, for this package only: no other event loop can run beside it."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed (see CONTRIBUTING.md)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def url(browser: Browser, tiny_bundle: Path) -> Iterator[str]:
    """Address of a real service."""
    with service_process(tiny_bundle, "--log-requests", "none") as service:
        yield f"http://127.0.0.1:{service.port}/"


@pytest.fixture(scope="package")
def locked_url(browser: Browser, tiny_bundle: Path) -> Iterator[str]:
    """Address of a real service that asks for the key `sesame`."""
    with service_process(tiny_bundle, "--log-requests", "none", "--api-key", "sesame") as service:
        yield f"http://127.0.0.1:{service.port}/"


@pytest.fixture(scope="package")
def two_models_url(
    browser: Browser,
    tiny_bundle: Path,
    tiny_flat_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Address of a real service that serves `tiny` and, with raw scores, `books`."""
    books = tmp_path_factory.mktemp("bundle") / "books"
    shutil.copytree(tiny_flat_bundle, books)
    manifest = json.loads((books / MANIFEST).read_text())
    seal(books, manifest | {"name": "books"})
    more = ("--more-bundles", str(books))
    with service_process(tiny_bundle, "--log-requests", "none", *more) as service:
        yield f"http://127.0.0.1:{service.port}/"


@pytest.fixture
def new_page(browser: Browser) -> Iterator[Opener]:
    """Opens an address in a context of its own; with `ready`, waits until the page is."""
    contexts = []

    def make(
        address: str, *, ready: bool = True, prepare: Any = None, **options: Any
    ) -> tuple[Page, Seen]:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        seen = Seen(page)
        if prepare:
            prepare(page)
        page.goto(address)
        if ready:
            expect(page.locator("#state")).to_have_text("ready")
        return page, seen

    yield make
    for context in contexts:
        context.close()
