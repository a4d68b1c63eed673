"""The command line: `python -m loadtest run | saturate | ceiling`.

This module imports nothing slow, so that --help is instant. The commands import numpy, matplotlib
and LoadGen when they run.
"""

import argparse
import dataclasses
from datetime import UTC, datetime
from pathlib import Path

from loadtest.errors import UsageError
from loadtest.plan import (
    EFFORTS,
    StepPlan,
    check,
    check_enough_queries,
    check_query_count,
    enough_seconds,
)
from loadtest.search import SearchLimits

# 20 s at 50 queries/s or more are the 1,000 queries that a verdict needs (plan.ENOUGH_QUERIES).
DEFAULTS = StepPlan(url="http://127.0.0.1:8000", rate=0, seconds=20)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser with every command and option."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest",
        description="Open-loop load tests over HTTP, timed and judged by MLPerf LoadGen.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="run | saturate | ceiling")
    run = verbs.add_parser("run", help="measure one rate")
    run.add_argument("--rate", type=float, required=True, help="queries per second, on average")
    run.add_argument("--seconds", type=float, default=20, help="length of the step (default: 20)")
    saturate = verbs.add_parser("saturate", help="find the highest rate that holds")
    ceiling = verbs.add_parser("ceiling", help="find this client's own highest rate")
    for verb in (run, saturate):
        _add_service_options(verb)
    # Starting points and budgets are choices: a service is expected near 100 to 10,000 queries/s,
    # the client by itself near 16,000 (docs/loadtest.md). Longer steps cost time and vary less.
    _add_search_options(saturate, start_rate=100, seconds=8, budget=300, max_rate=20_000)
    _add_search_options(ceiling, start_rate=2000, seconds=4, budget=120, max_rate=200_000)
    for verb in (run, saturate, ceiling):
        _add_common_options(verb)
    return parser


def plan_from(options: argparse.Namespace) -> StepPlan:
    """Turn parsed options into a checked plan. Raises UsageError."""
    names = {field.name for field in dataclasses.fields(StepPlan)}
    values = {name: value for name, value in vars(options).items() if name in names}
    if options.verb != "run":
        values |= {"rate": options.start_rate, "seconds": options.seconds_per_step}
    plan = StepPlan(**{"url": DEFAULTS.url, **values})
    check(plan)
    if options.verb == "run":
        check_enough_queries(plan.rate, plan.seconds)
    return plan


def limits_from(options: argparse.Namespace) -> SearchLimits:
    """Turn parsed options into checked search limits. Raises UsageError."""
    if not 0 < options.tolerance < 1:
        raise UsageError(f"--tolerance is {options.tolerance:g}; give a share such as 0.05.")
    if not options.start_rate <= options.max_rate < float("inf"):
        raise UsageError(
            f"--start-rate ({options.start_rate:g}) is above --max-rate ({options.max_rate:g}); "
            "lower --start-rate."
        )
    first_s = enough_seconds(options.start_rate, options.seconds_per_step)
    if options.max_seconds < first_s:
        raise UsageError(
            f"--max-seconds ({options.max_seconds:g}) is less than the first step takes "
            f"({first_s:g} s); raise --max-seconds."
        )
    check_query_count(options.max_rate, options.seconds_per_step)
    return SearchLimits(
        start_rate=options.start_rate,
        max_rate=options.max_rate,
        min_rate=options.start_rate / 4,
        seconds_per_step=options.seconds_per_step,
        max_seconds=options.max_seconds,
        tolerance=options.tolerance,
    )


def out_folder(options: argparse.Namespace) -> Path:
    """Make the folder for the results. Raises UsageError where it already holds files."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    out = options.out or Path("loadtest-results") / f"{stamp}-{options.verb}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} exists and is not an empty folder; name a new folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UsageError(f"--out {out} cannot be made: {exc.strerror}.") from exc
    return Path(out)


def _add_service_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--url", default=DEFAULTS.url, help="base URL of the service (default: %(default)s)")
    add(
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="a header of every request; may be repeated; process lists show it",
    )
    add("--api-key-env", metavar="NAME", help="variable that holds the service's key, if any")
    add("--queries", metavar="FILE", help="one text a line, or JSON lines with 'title'; .gz too")
    add("--k", type=int, default=DEFAULTS.k, help="labels per query (default: %(default)s)")
    add("--effort", choices=EFFORTS, default=DEFAULTS.effort, help="default: %(default)s")
    add("--max-error-rate", type=float, default=0.0, help="largest share of failures (default: 0)")
    add("--no-ceiling", action="store_true", help="do not measure the client's own ceiling")


def _add_search_options(
    parser: argparse.ArgumentParser, start_rate: int, seconds: int, budget: int, max_rate: int
) -> None:
    add = parser.add_argument
    add(
        "--start-rate",
        type=float,
        default=start_rate,
        help="first rate; the search never goes below a quarter of it (default: %(default)s)",
    )
    add("--max-rate", type=float, default=max_rate, help="default: %(default)s")
    add("--seconds-per-step", type=float, default=seconds, help="default: %(default)s")
    add("--max-seconds", type=float, default=budget, help="time budget (default: %(default)s)")
    add(
        "--tolerance",
        type=float,
        default=0.05,
        help="end when the failing rate is this share above the holding one (default: %(default)s)",
    )


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--p99-ms", type=float, default=DEFAULTS.p99_ms, help="p99 limit (default: %(default)s)")
    add(
        "--timeout-ms",
        type=float,
        default=DEFAULTS.timeout_ms,
        help="deadline of each query; the client waits 250 ms longer (default: %(default)s)",
    )
    add(
        "--connections",
        type=int,
        default=DEFAULTS.connections,
        help="most connections at once (default: %(default)s)",
    )
    add("--seed", type=int, default=DEFAULTS.seed, help="seed of arrivals and query order")
    add("--out", type=Path, metavar="DIR", help="results folder (default: loadtest-results/...)")
