"""Pages of the documentation: no line too wide to review, no link or command that leads nowhere."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WIDEST = 120  # characters: what a review shows of a line without scrolling
GENERATED = ROOT / "docs" / "configuration.md"  # a setting's help is one cell of a table
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "deploy" / "README.md"])
LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]^]+\]: (\S+)$", re.M)


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """The text of a page without its code blocks, line by line as it stands."""
    text = page.read_text(encoding="utf-8")
    return re.sub(
        r"^```.*?^```$", lambda block: "\n" * block[0].count("\n"), text, flags=re.M | re.S
    )


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {word.replace(" ", "-") for word in words}


@pytest.mark.parametrize("page", [page for page in PAGES if page != GENERATED], ids=named)
def test_no_line_is_too_wide(page: Path) -> None:
    lines = enumerate(prose(page).splitlines(), start=1)
    wide = [f"{named(page)}:{number}" for number, line in lines if len(line) > WIDEST]
    assert not wide, f"over {WIDEST} characters, wrap at 110: {', '.join(wide)}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    links = ["".join(found) for found in LINK.findall(prose(page))]
    for link in links:
        if re.match(r"\w+:", link):  # another site, which this test must not ask
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{named(page)} links to {link}, and no such file is there"
        if anchor:
            assert anchor in anchors(target), f"{named(page)} links to {link}: no such heading"


def test_commands_to_measure_again_name_modules_and_configurations_that_are_there() -> None:
    commands = (ROOT / "docs" / "lab" / "README.md").read_text(encoding="utf-8")
    modules = set(re.findall(r"\$P ([\w.]+)", commands))
    assert len(modules) > 20
    assert [name for name in modules if find_spec(name) is None] == []
    configurations = set(re.findall(r"[\w/]+/configs/[\w-]+\.toml", commands))
    assert configurations
    assert [path for path in configurations if not (ROOT / path).is_file()] == []
