"""Writes report.html, one page that loads nothing: no scripts, no fonts, no images.

The page shows result.json and charts of the steps' samples.
"""

from html import escape
from pathlib import Path
from typing import Any

from loadtest.charts import latency_by_rate, latency_cdf, latency_over_time
from loadtest.result import Result, StepResult, write_whole
from loadtest.samples import SAMPLES_FILE, Samples

REPORT_FILE = "report.html"
STEPS_FOLDER = "steps"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; margin: 2rem auto;
  max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.verdict { padding: .6rem 1rem; border-left: .4rem solid #009e73; background: #eef8f4; }
.verdict.bad { border-color: #d55e00; background: #fdf1e9; }
.warning { padding: .4rem 1rem; border-left: .4rem solid #e0a800; background: #fff8e1; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { white-space: nowrap; padding: .25rem .7rem; text-align: right;
  border-bottom: 1px solid #e5e5e5; }
th:first-child, td:first-child, .facts td { text-align: left; }
.wide { overflow-x: auto; } svg { max-width: 100%; height: auto; } .note { color: #555; }
"""


def write_report(result: Result, folder: Path) -> Path:
    """Write the page into `folder`, which holds the samples of the steps, and return its path."""
    parts = [
        f"<h1>Astrolabe load test: {escape(result.command)}</h1>",
        f"<p class=note>{escape(result.url)}, {escape(result.created)}</p>",
        f'<p class="verdict{"" if result.ok else " bad"}">{escape(result.verdict)}</p>',
        *(f"<p class=warning>{escape(warning)}</p>" for warning in result.warnings),
        *_charts(result, folder),
        "<h2>Steps</h2>",
        _steps(result.steps),
        "<h2>How it was measured</h2>",
        _facts(result),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Astrolabe load test</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    path = folder / REPORT_FILE
    write_whole(path, page)
    return path


def _charts(result: Result, folder: Path) -> list[str]:
    main_step = result.answer_step or result.steps[-1]
    above = [s for s in result.steps if not s.holds and s.rate_asked > main_step.rate_asked]
    curves = [main_step, *sorted(above, key=lambda step: step.rate_asked)[:1]]
    samples = {s.name: Samples.load(folder / STEPS_FOLDER / s.name / SAMPLES_FILE) for s in curves}
    limit_ms = float(result.settings["p99_ms"])
    labelled = [(f"{s.rate_asked:g}/s", samples[s.name]) for s in curves]
    return [
        "<h2>Share of queries answered, by latency</h2>",
        "<p class=note>The curve must cross the dotted 99 % line to the left of the dashed limit. "
        "A failed query never counts as answered.</p>",
        latency_cdf(labelled, limit_ms),
        "<h2>Latency against rate</h2>",
        latency_by_rate(result.steps, limit_ms),
        f"<h2>Latency over time at {main_step.rate_asked:g}/s</h2>",
        "<p class=note>A stall of the service is a peak that slopes down to the right, because "
        "every query scheduled during the stall waited for its end.</p>",
        latency_over_time(samples[main_step.name], limit_ms),
    ]


def _steps(steps: list[StepResult]) -> str:
    titles = ["step", "target/s", "answered/s", "queries", "p50 ms", "p95 ms", "p99 ms", "p99.9 ms"]
    titles += ["max ms", "p99 from send", "failed", "LoadGen", "client CPU s"]
    head = "".join(f"<th>{title}</th>" for title in titles)
    rows = "".join(f"<tr>{_step_cells(step)}</tr>" for step in steps)
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _step_cells(step: StepResult) -> str:
    latency = step.latency_from_schedule_ms or {}
    from_send = step.latency_from_send_ms or {}
    failures = ", ".join(f"{name} {n:,}" for name, n in step.outcomes.items() if name != "ok")
    cells = [step.name, f"{step.rate_asked:g}", f"{step.rate_answered:g}", f"{step.n_queries:,}"]
    cells += [_ms(latency.get(name)) for name in ("p50", "p95", "p99", "p99.9", "max")]
    cells += [_ms(from_send.get("p99")), failures or "0"]
    cells += ["VALID" if step.loadgen["valid"] else "INVALID", f"{step.client_cpu_s:g}"]
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells)


def _facts(result: Result) -> str:
    facts: dict[str, Any] = {**result.settings, **result.machine}
    step = result.answer_step
    if step is not None:
        facts |= {f"server stage {name}, ms": ms for name, ms in step.server_stages_ms.items()}
    info = result.server_info or {}
    facts |= {f"server {k}": v for k, v in info.items() if isinstance(v, str | int | float)}
    if result.ceiling is not None:
        rate = result.ceiling.rate
        facts["client ceiling, queries/s"] = "not found" if rate is None else f"{rate:g}"
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f'<div class="wide"><table class="facts">{rows}</table></div>'


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
