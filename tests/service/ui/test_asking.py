"""What typing does: answers, what they show, and that an older one never wins."""

import re
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Route, expect

from tests.support.pages import Opener, altered, clocked, rows, stop

pytestmark = pytest.mark.slow


def test_typing_gives_answers_with_bars_stages_and_measured_efforts(
    url: str, new_page: Opener
) -> None:
    page, seen = new_page(url)
    page.locator("#query").press_sequentially("the white whale")
    expect(rows(page)).to_have_count(10)
    expect(rows(page).first).to_contain_text("whale")
    scores = [float(text) for text in page.locator(".score").all_text_contents()]
    assert scores == sorted(scores, reverse=True)
    widths = page.locator(".fill").evaluate_all(
        "bars => bars.map(bar => parseFloat(bar.style.width))"
    )
    assert widths == pytest.approx([100 * score for score in scores], abs=0.01)
    expect(page.locator("#scores")).to_contain_text("calibrated probabilities")
    assert page.locator("#legend li span:nth-child(2)").all_text_contents() == [
        "queue",
        "tokenize",
        "encode",
        "search",
        "rerank",
        "rest",
    ]
    expect(page.locator("#trip")).to_contain_text(
        re.compile(r"ms in the service, .* ms round trip")
    )
    expect(page.locator("#efforts label")).to_have_count(4)
    expect(page.get_by_label("balanced", exact=False).first).to_be_checked()
    expect(page.locator("#summary")).to_have_text("tiny · 50 labels")
    assert seen.hosts == {urlsplit(url).netloc}
    assert seen.complaints == []


def test_laptop_without_a_gpu_is_told_so_in_a_fact_and_not_warned(
    url: str, new_page: Opener
) -> None:
    page, _ = new_page(url, prepare=lambda page: altered(page, "/v1/info", without_gpu))
    expect(page.locator("#facts")).to_contain_text("cpu (auto found no GPU)")
    expect(page.locator(".notice:visible")).to_have_count(0)
    expect(page.get_by_role("alert")).to_have_count(0)


def without_gpu(info: dict[str, Any]) -> None:
    info["device"] = {"requested": "auto", "active": "cpu"}


def test_a_pause_in_typing_asks_once(url: str, new_page: Opener) -> None:
    page, seen = new_page(url, prepare=clocked)
    stop(page)
    page.locator("#query").press_sequentially("whale")
    page.clock.run_for(119)
    assert seen.queries() == []
    with page.expect_response("**/v1/recommend"):
        page.clock.run_for(1)
    assert seen.queries() == ["whale"]


def hold_first(page: Page) -> list[Route]:
    """Keep the first question from being answered; the list will hold its route."""
    held: list[Route] = []
    page.route("**/v1/recommend", lambda route: route.continue_() if held else held.append(route))
    return held


def test_a_newer_question_calls_the_older_one_off(url: str, new_page: Opener) -> None:
    page, seen = new_page(url, prepare=lambda page: hold_first(page))
    with page.expect_request("**/v1/recommend"):
        page.fill("#query", "whale")
    with page.expect_event("requestfailed"):
        page.fill("#query", "rose")
    expect(rows(page).first).to_contain_text("rose")
    assert seen.called_off == ["net::ERR_ABORTED"]
    expect(page.locator("#problem")).to_be_hidden()


def test_an_answer_that_comes_late_is_not_shown(url: str, new_page: Opener) -> None:
    held: list[Route] = []

    def prepare(page: Page) -> None:
        page.add_init_script("AbortController.prototype.abort = () => {}")
        held_now = hold_first(page)
        held.append(held_now)  # type: ignore[arg-type]

    page, seen = new_page(url, prepare=prepare)
    with page.expect_request("**/v1/recommend"):
        page.fill("#query", "whale")
    page.fill("#query", "rose")
    expect(rows(page).first).to_contain_text("rose")
    with page.expect_response("**/v1/recommend"):
        held[0][0].continue_()  # type: ignore[index]
    page.evaluate("() => new Promise(requestAnimationFrame)")
    expect(rows(page).first).to_contain_text("rose")
    assert seen.queries() == ["whale", "rose"]


def test_truncation_and_lowered_effort_are_said(url: str, new_page: Opener) -> None:
    page, _ = new_page(url)
    altered(page, "/v1/recommend", lambda content: content.update(effort_asked="thorough"))
    page.fill("#query", "whale " * 40)
    expect(page.locator("#flags")).to_contain_text("The end of the text was cut off")
    expect(page.locator("#flags")).to_contain_text("at balanced instead of thorough")


def test_markup_in_a_label_stays_text(url: str, new_page: Opener) -> None:
    markup = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"

    def poison(content: dict[str, Any]) -> None:
        [label] = content["results"][0]["labels"]
        label.update(id=markup, text=markup, metadata={markup: markup})
        content["results"][0]["explanation"] = {markup: [markup]}

    page, seen = new_page(url)
    altered(page, "/v1/recommend", poison)
    page.fill("#k", "1")
    page.fill("#query", markup)
    expect(rows(page)).to_have_count(1)
    expect(page.locator(".text")).to_have_text(markup)
    assert page.locator("#labels img, #labels b, #explanation img").count() == 0
    assert page.title() == "tiny · Astrolabe"
    assert seen.complaints == []
