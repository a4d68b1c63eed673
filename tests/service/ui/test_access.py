"""Whom the page works for: keyboard only, screen reader, dark ground, phone; photographs it."""

import re
from contextlib import suppress
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Error as BrowserError
from playwright.sync_api import Page, expect

from tests.support.pages import Opener, clocked, refusing, rows, stop

pytestmark = pytest.mark.slow

SHOTS = Path(__file__).resolve().parents[3] / "var" / "playground"
PHONE = {"width": 360, "height": 740}


def test_everything_works_by_keyboard(url: str, new_page: Opener) -> None:
    page, seen = new_page(url)
    focused = page.locator(":focus")
    expect(focused).to_have_id("query")
    page.keyboard.type("star")
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(10)
    n_asked = len(seen.asked)
    with page.expect_response("**/v1/recommend"):
        page.keyboard.press("Enter")
    assert seen.asked[n_asked]["query"] == "star"
    page.keyboard.press("ArrowDown")
    ids = page.locator(".id")
    expect(ids.nth(0)).to_be_focused()
    page.keyboard.press("End")
    expect(ids.nth(9)).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(ids.nth(8)).to_be_focused()
    expect(ids.nth(8)).to_have_css("outline-style", "solid")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    expect(focused).to_have_id("query")
    for name in ("copy", *[None] * 10):  # the button, then the ten ids
        page.keyboard.press("Tab")
        if name:
            expect(focused).to_have_id(name)
    page.keyboard.press("Tab")
    expect(focused).to_have_attribute("name", "effort")
    with page.expect_response("**/v1/recommend"):
        page.keyboard.press("ArrowUp")
    assert seen.asked[-1]["effort"] == "fast"
    expect(page.locator("#outcome")).to_have_text("10 at effort fast")
    page.keyboard.press("Escape")
    expect(focused).to_have_id("query")
    expect(rows(page)).to_have_count(0)
    expect(page.locator("#empty")).to_have_text("Type a text to see labels.")


def test_screen_reader_hears_the_answer_once_typing_has_paused(url: str, new_page: Opener) -> None:
    page, _ = new_page(url, prepare=clocked)
    stop(page)
    page.fill("#query", "whale")
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(10)
    assert page.get_by_role("status").text_content() == ""
    page.clock.run_for(800)
    expect(page.get_by_role("status")).to_have_text(re.compile(r"^10 labels in .* Best: .*whale"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1280, "height": 900}, PHONE], ids=["desk", "phone"])
def test_nothing_is_inaccessible_or_cut_off(
    url: str, new_page: Opener, scheme: str, size: dict[str, int]
) -> None:
    page, _ = new_page(url, color_scheme=scheme, viewport=size, reduced_motion="reduce")
    light = page.evaluate("matchMedia('(prefers-color-scheme: light)').matches")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert light == (scheme == "light")
    assert (sum(map(int, re.findall(r"\d+", ground))) > 384) == light
    page.locator("#filters summary").click()
    page.get_by_label("Show metadata").check()
    page.fill("#query", "the white whale and the captain of the ship on a stormy ocean")
    expect(rows(page)).to_have_count(10)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert page.locator(".fill").first.evaluate("it => getComputedStyle(it).transition") in (
        "none",
        "all",
    )
    _photograph(page, f"{scheme}-{size['width']}")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.route("**/v1/recommend", refusing(429, "the queue is full"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def _photograph(page: Page, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    with suppress(BrowserError):  # a picture is for people; no test hangs on it
        page.screenshot(path=SHOTS / f"{name}.png", full_page=True)
