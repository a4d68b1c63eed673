"""The report: a table for a terminal, JSON, and a page that loads nothing and says everything."""

import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from models.tune.candidate import Build, Candidate
from models.tune.goal import Goal
from models.tune.page import write_page
from models.tune.report import Report, as_text, last_of_each
from tests.support.results import tuning_measurement


@pytest.fixture
def report():
    last = [tuning_measurement(1, p99=60, recall=0.97), tuning_measurement(2, p99=90, recall=0.99)]
    last.append(tuning_measurement(3, p99=95, recall=0.98))
    pq = Candidate(Build("ivf-pq<", (("ivf_lists", 64),)), (("nprobe", 4),))
    return Report(
        name="shelf & co",
        n_labels=12_476,
        goal=Goal(p99_us=200, recall=0.98),
        machine="x86_64, 2 CPUs",
        command="python -m models tune --p99-us 200 --recall 0.98",
        verdict="chosen: the second",
        last=tuple(last),
        earlier=(tuning_measurement(candidate=pq, p99=500, recall=0.6, n_queries=124),),
        chosen=last[1],
    )


class Page(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def having(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_the_table_marks_the_front_and_the_choice(report):
    lines = as_text(report).splitlines()
    assert [line[0] for line in lines[1:4]] == ["*", ">", " "]
    assert "0.9900" in lines[2]
    assert lines[-1] == "chosen: the second"


def test_json_has_the_front_the_choice_and_all_that_was_measured(report, tmp_path):
    record = json.loads(report.save(tmp_path).read_text())
    assert [each["candidate"]["params"]["ef_search"] for each in record["front"]] == [1, 2]
    assert record["chosen"]["recall"] == 0.99
    assert len(record["measured"]) == 4
    assert record["goal"]["p99_us"] == 200


def test_the_page_loads_nothing_and_its_drawing_is_sound(report, tmp_path):
    text = write_page(report, tmp_path).read_text()
    page = Page(text)
    assert not [tag for tag in ("script", "link", "img", "iframe") if page.having(tag)]
    assert "http" not in text
    assert "prefers-color-scheme: dark" in text
    svg = ET.fromstring(text[text.index("<svg") : text.index("</svg>") + len("</svg>")].replace(
        "xlink:href", "href"
    ))  # fmt: skip
    marks = [each.findtext("title") for each in svg.iter("g") if each.find("title") is not None]
    assert [mark.partition(": ")[2] for mark in marks] == [
        "recall 0.6000, p99 500 us, 124 queries",
        "recall 0.9700, p99 60 us, 1,000 queries",
        "recall 0.9900, p99 90 us, 1,000 queries",
        "recall 0.9800, p99 95 us, 1,000 queries",
    ]
    drawn = [each.text for each in svg.iter("text")]
    assert {"ivf-pq<", "hnsw", "100", "0.98", "recall@10 (log of what is missed)"} <= set(drawn)
    assert svg.get("role") == "img"
    named = svg.get("aria-labelledby").split()
    assert named == [svg.find("title").get("id"), svg.find("desc").get("id")]


def test_the_table_below_can_be_read_and_scrolled_without_a_mouse(report, tmp_path):
    text = write_page(report, tmp_path).read_text()
    page = Page(text)
    [region] = [attrs for attrs in page.having("div") if attrs.get("role") == "region"]
    assert region["tabindex"] == "0"
    assert region["aria-label"]
    assert page.having("caption")
    assert all(attrs["scope"] in ("row", "col") for attrs in page.having("th"))
    assert len([a for a in page.having("th") if a["scope"] == "row"]) == len(report.last)
    assert "shelf &amp; co" in text
    assert "ivf-pq&lt;" in text


def test_a_perfect_recall_and_a_single_point_can_be_drawn(report, tmp_path):
    one = tuning_measurement(1, recall=1.0)
    write_page(
        Report("a", 5, Goal(), "m", "c", "v", last=(one,), earlier=(), chosen=None), tmp_path
    )


def test_the_rest_is_what_was_measured_last_of_each_that_fell_out():
    first = [tuning_measurement(i, n_queries=100) for i in range(4)]
    second = [tuning_measurement(i, n_queries=200) for i in (0, 1)]
    third = [tuning_measurement(0, n_queries=400)]
    last, earlier = last_of_each([first, second, third])
    assert last == third
    assert [(dict(e.candidate.params)["ef_search"], e.n_queries) for e in earlier] == [
        (1, 200),
        (2, 100),
        (3, 100),
    ]
