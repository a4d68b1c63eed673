"""What the controls send, and that the address and the copied command carry them."""

from urllib.parse import quote_plus, urlsplit

import pytest
from playwright.sync_api import expect

from tests.support.pages import Opener, rows

pytestmark = pytest.mark.slow


def test_controls_reach_the_request_and_the_address_reproduces_them(
    url: str, new_page: Opener
) -> None:
    page, seen = new_page(url)
    page.fill("#query", "rome & <rome> # ö")
    page.fill("#k", "3")
    page.fill("#min_score", "0.2")
    page.fill("#diversity", "0.1")
    page.get_by_label("fast").check()
    page.get_by_label("Keep this effort under load").check()
    with page.expect_request(lambda request: '"include"' in (request.post_data or "")):
        page.get_by_label("Show metadata").check()
    expect(page.locator("#outcome")).to_have_text("3 at effort fast")
    wanted = {
        "query": "rome & <rome> # ö",
        "k": 3,
        "min_score": 0.2,
        "diversity": 0.1,
        "effort": "fast",
        "effort_strict": True,
        "include": ["text", "metadata"],
    }
    assert seen.asked[-1] == wanted
    again, seen_again = new_page(page.url)
    expect(rows(again)).to_have_count(3)
    assert seen_again.asked == [wanted]
    expect(again.locator("#query")).to_have_value("rome & <rome> # ö")
    with again.expect_response("**/v1/recommend"):
        again.evaluate("location.hash = 'q=moon&k=2'")
    expect(rows(again)).to_have_count(2)
    assert seen_again.asked[-1] == {"query": "moon", "k": 2}


@pytest.mark.parametrize(
    "text",
    [
        "the white whale",
        "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">",
        "salt & pepper = 100 % #1 + ?q=moon",
        "קפטן whale 鯨 🐋 ö\nsecond line",
        "whale " * 1365,  # 8,190 characters: the service takes 8,192
    ],
    ids=["plain", "markup", "marks", "unicode", "long"],
)
def test_address_with_q_opens_with_the_answer_to_that_text(
    url: str, new_page: Opener, text: str
) -> None:
    page, seen = new_page(f"{url}?q={quote_plus(text)}&k=3")
    expect(rows(page)).to_have_count(3)
    assert seen.asked == [{"query": text, "k": 3}]
    expect(page.locator("#query")).to_have_value(text)
    assert page.title() == "tiny · Astrolabe"
    assert seen.complaints == []
    kept = urlsplit(page.url)
    assert (kept.path, kept.query) == ("/", "")
    again, seen_again = new_page(page.url)
    expect(rows(again)).to_have_count(3)
    assert seen_again.asked == seen.asked


def test_text_after_the_hash_wins_over_one_before_it(url: str, new_page: Opener) -> None:
    page, seen = new_page(f"{url}?q=whale&k=3#q=moon")
    expect(rows(page)).to_have_count(3)
    assert seen.asked == [{"query": "moon", "k": 3}]


def test_text_of_a_link_that_is_too_long_is_refused_by_the_service(
    url: str, new_page: Opener
) -> None:
    page, _ = new_page(f"{url}?q={'a' * 10_000}", ready=False)
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text("Query has 10000 characters, the limit is 8192.")
    expect(page.locator("#state")).to_have_text("413")


def test_address_holds_no_link_where_it_would_be_too_long(url: str, new_page: Opener) -> None:
    page, seen = new_page(f"{url}?q=whale")
    expect(rows(page)).to_have_count(10)
    assert page.url == f"{url}#q=whale"
    with page.expect_response("**/v1/recommend"):
        page.fill("#query", "a" * 99_998)  # with q= 100,000
    assert page.url == f"{url}#q={'a' * 99_998}"
    with page.expect_response("**/v1/recommend"):
        page.fill("#query", "a" * 99_999)
    assert page.url == url
    assert len(seen.asked[-1]["query"]) == 99_999


def test_filters_are_sent_only_when_given(url: str, new_page: Opener) -> None:
    page, seen = new_page(url)
    page.fill("#query", "whale")
    expect(rows(page)).to_have_count(10)
    assert seen.asked[-1] == {"query": "whale"}
    page.locator("#filters summary").click()
    page.fill("#allow", "L001 L003,\nL011 nobody")
    page.fill("#deny", "L009")
    page.fill("#where", "shelf=3\nshelf=4\nshelf=1\n")
    expect(page.locator("#filter-count")).to_have_text("3")
    with page.expect_response("**/v1/recommend"):
        page.locator("#query").press("Enter")
    assert seen.asked[-1] == {
        "query": "whale",
        "allow": ["L001", "L003", "L011", "nobody"],
        "deny": ["L009"],
        "where": {"shelf": [3, 4, 1]},
    }
    expect(rows(page)).to_have_count(3)
    expect(page.locator("#outcome")).to_contain_text("all 3 of 50 labels let through were")
    expect(page.locator("#flags")).to_contain_text("1 name no label")


def test_answer_is_explained_and_scored_raw_where_asked(url: str, new_page: Opener) -> None:
    page, seen = new_page(url)
    page.fill("#query", "whale")
    page.get_by_label("Raw scores").check()
    with page.expect_request(lambda request: '"explain":true' in (request.post_data or "")):
        page.get_by_label("Explain the answer").check()
    expect(page.locator("#explanation")).to_contain_text("raw scores")
    expect(page.locator("#explanation")).to_contain_text("recall at 10")
    expect(page.locator("#scores")).to_contain_text("Scores are raw logits")
    assert seen.asked[-1] == {"query": "whale", "explain": True, "scores": "raw"}


def test_models_can_be_chosen_where_there_are_several(
    two_models_url: str, new_page: Opener
) -> None:
    page, seen = new_page(two_models_url)
    page.fill("#query", "whale")
    expect(rows(page)).to_have_count(10)
    assert seen.asked[-1] == {"query": "whale", "model": "tiny"}
    page.get_by_label("Model").select_option("books")
    expect(page.locator("#summary")).to_have_text("books · 50 labels")
    expect(page.locator("#facts")).to_contain_text("flat, 16 dimensions")
    expect(page.locator("#scores")).to_contain_text("Scores are raw logits")
    assert seen.asked[-1] == {"query": "whale", "model": "books"}
    again, _ = new_page(page.url)
    expect(again.get_by_label("Model")).to_have_value("books")
    unknown, _ = new_page(f"{two_models_url}#q=whale&model=nowhere", ready=False)
    expect(unknown.get_by_role("alert")).to_contain_text("model_unknown")


def test_one_model_needs_no_choice(url: str, new_page: Opener) -> None:
    page, _ = new_page(url)
    expect(page.locator("#model-row")).to_be_hidden()


def test_copied_command_is_the_request_without_the_key(locked_url: str, new_page: Opener) -> None:
    page, _ = new_page(
        locked_url,
        ready=False,
        permissions=["clipboard-read", "clipboard-write"],
        prepare=lambda page: page.add_init_script(
            "sessionStorage.setItem('astrolabe-api-key', 'sesame')"
        ),
    )
    page.fill("#query", "captain's ship")
    expect(rows(page)).to_have_count(10)
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.locator("#copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == (
        f"curl -s '{locked_url}v1/recommend' \\\n"
        "  -H 'Content-Type: application/json' \\\n"
        '  -H "Authorization: Bearer $ASTROLABE_API_KEY" \\\n'
        "  -d '{\"query\":\"captain'\\''s ship\"}'"
    )
