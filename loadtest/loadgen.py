"""Drives MLPerf's LoadGen: it schedules the Poisson arrivals, times every query and judges the run.

LoadGen calls `issue` at each scheduled time on its own thread. Queries that fell due while that
thread waited for the interpreter are handed over together (coalesced), each with its own scheduled
time. Its logs are read by loadgen_log.py. One test a process: LoadGen keeps global state.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import mlperf_loadgen

from loadtest.plan import PERCENTILE, StepPlan

Issue = Callable[[Sequence[tuple[int, int]]], None]


def run_loadgen(plan: StepPlan, n_texts: int, issue: Issue, folder: Path) -> None:
    """Run one Server-scenario test; returns when every query has been completed."""

    def issue_samples(samples: list[mlperf_loadgen.QuerySample]) -> None:
        issue([(sample.id, sample.index) for sample in samples])

    sut = mlperf_loadgen.ConstructSUT(issue_samples, _nothing)
    qsl = mlperf_loadgen.ConstructQSL(n_texts, n_texts, _nothing, _nothing)
    try:
        mlperf_loadgen.StartTestWithLogSettings(sut, qsl, _settings(plan), _log_settings(folder))
    finally:
        mlperf_loadgen.DestroyQSL(qsl)
        mlperf_loadgen.DestroySUT(sut)


def complete(sample_id: int) -> None:
    """Tell LoadGen that a query has ended; it takes the time now."""
    mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(sample_id, 0, 0)])


def _settings(plan: StepPlan) -> mlperf_loadgen.TestSettings:
    settings = mlperf_loadgen.TestSettings()
    settings.scenario = mlperf_loadgen.TestScenario.Server
    settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = plan.rate
    settings.server_target_latency_ns = round(plan.p99_ms * 1e6)
    settings.server_target_latency_percentile = PERCENTILE
    settings.server_coalesce_queries = True
    settings.min_duration_ms = round(plan.seconds * 1000)
    settings.min_query_count = 1
    settings.qsl_rng_seed = plan.seed
    settings.sample_index_rng_seed = plan.seed + 1
    settings.schedule_rng_seed = plan.seed + 2
    return settings


def _log_settings(folder: Path) -> mlperf_loadgen.LogSettings:
    output = mlperf_loadgen.LogOutputSettings()
    output.outdir = str(folder)
    settings = mlperf_loadgen.LogSettings()
    settings.log_output = output
    # The trace is LoadGen's only per-query record of scheduled times.
    settings.enable_trace = True
    return settings


def _nothing(*_: object) -> None:
    """Answer the callbacks that have nothing to do: texts are always in memory."""
