"""Reads LoadGen's logs: its verdict with the reasons, and the scheduled time of every query.

Each line of the detail log is a marker and a JSON object. The trace as a whole is not always valid
JSON, so a regular expression picks out its sample lines.
"""

import json
import mmap
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtest.errors import LoadTestError

DETAIL = "mlperf_log_detail.txt"
TRACE = "mlperf_log_trace.json"
_MARKER = ":::MLLOG "
_SAMPLE = re.compile(
    rb'"name":"Sample",[^\n]*"ph":"b",[^\n]*"ts":(-?[\d.]+),"args":\{"sample_seq":(\d+),'
    rb'[^\n]*"sample_idx":(\d+),[^\n]*"complete_ns":(\d+)'
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """LoadGen's own judgement of a test; rates are queries per second."""

    valid: bool
    reasons: list[str]
    n_queries: int
    n_over_limit: int
    p99_ms: float
    scheduled_rate: float


@dataclass(frozen=True, slots=True)
class Trace:
    """Columns with one entry a query, in the order of issue."""

    scheduled_s: npt.NDArray[np.float64]  # (n,) from the first query
    query_row: npt.NDArray[np.int64]  # (n,) position among the texts
    completed_s: npt.NDArray[np.float64]  # (n,) latency from the scheduled time


def read_verdict(folder: Path) -> Verdict:
    """Read the detail log. Raises LoadTestError where LoadGen came to no verdict."""
    values: dict[str, Any] = {}
    for line in (folder / DETAIL).read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(_MARKER):
            entry = json.loads(line.removeprefix(_MARKER))
            values[entry["key"]] = entry["value"]
    if "result_validity" not in values:
        raise LoadTestError(f"LoadGen stopped without a verdict; see {DETAIL} in {folder}.")
    return Verdict(
        valid=values["result_validity"] == "VALID",
        reasons=_reasons(values),
        n_queries=values["result_query_count"],
        n_over_limit=values["result_overlatency_query_count"],
        p99_ms=values["result_99.00_percentile_latency_ns"] / 1e6,
        scheduled_rate=float(values["result_scheduled_samples_per_sec"]),
    )


def _reasons(values: dict[str, Any]) -> list[str]:
    reasons = []
    if not values["result_perf_constraints_met"]:
        n_over, n_all = values["result_overlatency_query_count"], values["result_query_count"]
        limit_ms = values["effective_target_latency_ns"] / 1e6
        reasons.append(
            f"{n_over:,} of {n_all:,} queries ({n_over / n_all:.1%}) missed the {limit_ms:g} ms "
            "limit or failed; a p99 allows 1 %"
        )
    elif not values["early_stopping_met"]:
        shortfall = re.search(r"at least (\d+) more", values["early_stopping_result"])
        more = (
            f"{int(shortfall[1]):,} more queries inside the limit" if shortfall else "more queries"
        )
        reasons.append(f"too few queries to claim the p99 with 99 % confidence: needs {more}")
    if not values["result_min_duration_met"]:
        reasons.append("the test ended before its minimum duration")
    return reasons


def read_trace(folder: Path) -> Trace:
    """Read every sample line of the trace, in the order of issue."""
    with (
        (folder / TRACE).open("rb") as handle,
        mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as text,
    ):
        matches = _SAMPLE.findall(text)
    rows = np.array(matches, dtype="S32").reshape(-1, 4)
    order = np.argsort(rows[:, 1].astype(np.int64))
    scheduled_us = rows[order, 0].astype(np.float64)
    return Trace(
        scheduled_s=(scheduled_us - scheduled_us[:1]) / 1e6,
        query_row=rows[order, 2].astype(np.int64),
        completed_s=rows[order, 3].astype(np.float64) / 1e9,
    )
