"""Drives MLPerf's LoadGen, which schedules Poisson arrivals, times every query and judges the run.

LoadGen calls `issue` on its own thread at each scheduled time. Where that thread had to wait for
the interpreter, LoadGen hands over all queries that are due in one call (it coalesces them); each
keeps its own scheduled time. loadgen_log.py reads LoadGen's logs. A process can run one test only,
because LoadGen keeps global state.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import mlperf_loadgen

from loadtest.plan import PERCENTILE, StepPlan

Issue = Callable[[Sequence[tuple[int, int]]], None]  # pairs of LoadGen's handle and text number


def run_loadgen(plan: StepPlan, n_texts: int, issue: Issue, folder: Path) -> None:
    """Run one test of LoadGen's Server scenario; return when every query is complete.

    LoadGen draws from `n_texts` texts and writes its logs into `folder`.
    """

    def issue_samples(samples: list[mlperf_loadgen.QuerySample]) -> None:
        issue([(sample.id, sample.index) for sample in samples])

    sut = mlperf_loadgen.ConstructSUT(issue_samples, _do_nothing)
    qsl = mlperf_loadgen.ConstructQSL(n_texts, n_texts, _do_nothing, _do_nothing)
    try:
        mlperf_loadgen.StartTestWithLogSettings(sut, qsl, _settings(plan), _log_settings(folder))
    finally:
        mlperf_loadgen.DestroyQSL(qsl)
        mlperf_loadgen.DestroySUT(sut)


def complete(sample_id: int) -> None:
    """Tell LoadGen that a query has ended; LoadGen takes the time of this call."""
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
    # Only the trace has the scheduled time of every query.
    settings.enable_trace = True
    return settings


def _do_nothing(*_: object) -> None:
    """Serve as LoadGen's callbacks for loading and flushing: all texts are in memory."""
