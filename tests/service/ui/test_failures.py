"""What the page says when there is no answer."""

import re

import pytest
from playwright.sync_api import expect

from tests.support.pages import Opener, clocked, refusing, rows, stop

pytestmark = pytest.mark.slow


def test_refusal_is_a_sentence_with_its_request_id(url: str, new_page: Opener) -> None:
    page, _ = new_page(url)
    page.fill("#k", "1000")
    page.fill("#query", "whale")
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text("k: Input should be less than or equal to 100.")
    expect(problem).to_contain_text(re.compile(r"invalid_value · request [0-9a-f]{32}"))
    expect(page.locator("#state")).to_have_text("422")
    page.fill("#k", "5")
    expect(rows(page)).to_have_count(5)
    expect(problem).to_be_hidden()


def test_busy_service_says_when_to_try_again(url: str, new_page: Opener) -> None:
    page, _ = new_page(url)
    page.route("**/v1/recommend", refusing(429, "the queue is full", **{"Retry-After": "3"}))
    page.fill("#query", "whale")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The queue is full. Try again in 3 s, with Enter.")


def test_unreachable_service_is_asked_again_until_it_answers(url: str, new_page: Opener) -> None:
    page, _ = new_page(url, prepare=clocked)
    stop(page)
    page.route("**/v1/recommend", lambda route: route.abort())
    page.fill("#query", "whale")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer. Trying again")
    expect(page.locator("#state")).to_have_text("offline")
    page.unroute("**/v1/recommend")
    page.clock.run_for(2000)
    expect(rows(page)).to_have_count(10)
    expect(page.locator("#state")).to_have_text("ready")


def test_key_is_asked_for_and_kept_in_the_tab_only(locked_url: str, new_page: Opener) -> None:
    page, _ = new_page(locked_url, ready=False)
    asking = page.get_by_label("This service needs an API key")
    expect(asking).to_be_focused()
    expect(page.locator("#problem")).to_be_hidden()
    asking.fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Send the header Authorization")
    page.locator("#key").fill("sesame")
    page.get_by_role("button", name="Use key").click()
    expect(page.locator("#state")).to_have_text("ready")
    expect(page.locator("#key-form")).to_be_hidden()
    page.fill("#query", "whale")
    expect(rows(page)).to_have_count(10)
    assert "sesame" not in page.url
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert page.evaluate("Object.values(sessionStorage)") == ["sesame"]
