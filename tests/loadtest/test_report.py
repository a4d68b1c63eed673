"""The HTML page: it loads nothing, shows failures, and survives odd texts."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from loadtest.report import STEPS_FOLDER, write_report
from loadtest.samples import SAMPLES_FILE, Samples
from tests.support.results import RESULT, STEP


def write_samples(out: Path, name: str, codes: list[int]) -> None:
    folder = out / STEPS_FOLDER / name
    folder.mkdir(parents=True)
    latencies = np.linspace(0.001, 0.1, len(codes))
    scheduled = np.arange(len(codes)) / 100
    Samples(scheduled, latencies, latencies, np.array(codes)).save(folder / SAMPLES_FILE)


def test_the_page_loads_nothing_from_anywhere(tmp_path: Path):
    write_samples(tmp_path, "01-run", [200] * 300 + [429])
    page = write_report(RESULT, tmp_path).read_text(encoding="utf-8")
    addresses = set(re.findall(r"https?://[^\s\"'<,]+", page))
    assert addresses == {RESULT.url}  # as text, in the heading
    assert not re.search(r"<(script|link|img|iframe|object)\b|@import|url\((?!#)|\ssrc=", page)
    assert not re.search(r"href=\"(?!#)", page)
    assert page.count("<svg") == 3


def test_the_verdict_warnings_and_failures_are_on_the_page(tmp_path: Path):
    write_samples(tmp_path, "01-run", [200] * 300 + [429])
    page = write_report(RESULT, tmp_path).read_text(encoding="utf-8")
    for text in ("INVALID: ü", "careful", "http_429 1", "8000", "abc"):
        assert text in page


def test_texts_cannot_become_markup(tmp_path: Path):
    write_samples(tmp_path, "01-run", [200] * 10)
    hostile = replace(RESULT, server_info={"bundle_id": "<script>alert(1)</script>"})
    page = write_report(hostile, tmp_path).read_text(encoding="utf-8")
    assert "<script>" not in page


def test_a_step_without_a_single_answer_still_has_a_page(tmp_path: Path):
    write_samples(tmp_path, "01-run", [-2] * 50)
    silent = replace(STEP, latency_from_schedule_ms=None, outcomes={"refused": 50})
    page = write_report(replace(RESULT, steps=[silent]), tmp_path).read_text(encoding="utf-8")
    assert "refused 50" in page


def test_the_failing_step_above_the_answer_is_drawn_too(tmp_path: Path):
    write_samples(tmp_path, "01-run", [200] * 50)
    write_samples(tmp_path, "02-grow", [200] * 50)
    held = replace(STEP, holds=True)
    failed = replace(STEP, name="02-grow", rate_asked=400.0)
    page = write_report(replace(RESULT, steps=[held, failed]), tmp_path).read_text(encoding="utf-8")
    assert ">400/s<" in page
