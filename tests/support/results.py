"""Made-up results of a load test, of tuning and of a comparison, for what is done with results."""

from typing import Any

from loadtest.result import Ceiling, Result, StepResult
from models.compare.record import ComparedData, Provenance, Row
from models.tune.candidate import Build, Candidate, Measurement, Timing

STEP = StepResult(
    name="01-run",
    rate_asked=200.0,
    rate_scheduled=201.0,
    rate_answered=200.5,
    seconds=20.0,
    n_queries=4000,
    outcomes={"ok": 3999, "http_429": 1},
    error_rate=0.00025,
    latency_from_schedule_ms={"mean": 1.5, "p50": 1.0, "p95": 2.0, "p99": 3.0, "p99.9": 4.0}
    | {"p90": 1.5, "max": 5.0},
    latency_from_send_ms=None,
    send_delay_ms=None,
    p99_with_failures_ms=3.0,
    server_stages_ms={"total": 0.3},
    loadgen={"valid": True, "reasons": []},
    client_cpu_s=1.0,
    connections_opened=4,
    holds=False,
)
"""One step of a load test, in which one query failed."""

RESULT = Result(
    command="run",
    url="http://127.0.0.1:8000",
    created="2024-02-29T12:00:00+00:00",
    settings={"p99_ms": 20.0},
    steps=[STEP],
    answer="01-run",
    ok=False,
    verdict="INVALID: ü",
    warnings=["careful"],
    ceiling=Ceiling(8000.0, 20.0, True, "within tolerance"),
    server_info={"bundle_id": "abc"},
    machine={"cpus": 2},
    wall_s=21.0,
)
"""A load test of that step."""

COMPARED_DATA = ComparedData(
    data="shelf",
    data_sha256="ab" * 32,
    fields="title",
    n_train=1000,
    n_test=200,
    n_labels=60,
    propensity_a=0.55,
    propensity_b=1.5,
)
COMPARING_RUN = Provenance(
    "python -m models compare --data shelf", "2 CPUs", "2026-01-02", "abc123"
)
FIGURES = ("p1", "p3", "p5", "ndcg3", "ndcg5", "psp1", "psp3", "psp5", "r100")


def compared_row(
    system: str = "Parabel", p1: float = 26.5, digest: str = "d1", **changes: Any
) -> Row:
    """One system's row of a comparison; its other figures are shares of `p1`."""
    fields: dict[str, Any] = {
        "system": system,
        "version": "omikuji 0.5.2",
        "digest": digest,
        "settings": {"peer": {"n_trees": 3}},
        "metrics": {name: p1 / (place + 1) for place, name in enumerate(FIGURES)},
        "train_seconds": 12.34,
        "train_cpu_seconds": None,
        "model_bytes": 12_300_000,
        "query_ms_p50": 0.512,
        "query_ms_p99": 1.5,
        "measured_by": COMPARING_RUN,
    }
    return Row(**fields | changes)


def tuning_measurement(
    place: int = 0,
    *,
    p99: float = 100.0,
    recall: float = 0.98,
    size: int = 10_000_000,
    n_queries: int = 1000,
    **changes: Any,
) -> Measurement:
    """The measurement of candidate number `place`; `p99` in microseconds, `size` in bytes."""
    fields: dict[str, Any] = {
        "candidate": Candidate(Build("hnsw", (("m", 32),)), (("ef_search", place),)),
        "n_queries": n_queries,
        "recall": recall,
        "recall_error": 0.0,
        "p_at_1": 32.0,
        "p_at_5": 14.5,
        "p_at_1_loss": 0.0,
        "own_scores": False,
        "timing": Timing(p50=p99 / 2, p99=p99, clocked_p99=p99 * 3),
        "index_bytes": size,
    }
    return Measurement(**fields | changes)
