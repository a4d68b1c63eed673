"""Whole steps: LoadGen, the client and a service on loopback, through the worker process."""

import time
from pathlib import Path

import numpy as np
import pytest

from loadtest.errors import LoadTestError
from loadtest.plan import StepPlan
from loadtest.samples import SAMPLES_FILE, Samples
from loadtest.step import run_step
from tests.support.fake_service import answer, fake_service

STALL_S = 0.3


def test_a_stalled_server_cannot_hide(tmp_path: Path):
    def stall_once(number: int, body: dict[str, object]) -> bytes:
        if number == 200:
            time.sleep(STALL_S)  # the whole service stands still, as in a long collector pause
        return answer()

    with fake_service(stall_once) as service:
        step = run_step(StepPlan(service.url, rate=400, seconds=1.5, p99_ms=60), tmp_path / "step")

    samples = Samples.load(tmp_path / "step" / SAMPLES_FILE)
    worst = int(np.argmax(samples.from_schedule_s))
    began_s = samples.scheduled_s[worst]
    ended_s = began_s + samples.from_schedule_s[worst]
    during = (samples.scheduled_s > began_s) & (samples.scheduled_s < began_s + STALL_S / 2)
    completed_s = samples.scheduled_s + samples.from_schedule_s
    # Arrivals went on at 400/s while the service stood still, and none of them looks quick.
    assert during.sum() > 30
    assert (completed_s[during] > ended_s - STALL_S / 3).all()
    assert samples.from_schedule_s[during].min() > STALL_S / 6
    assert step.outcomes == {"ok": step.n_queries}
    assert step.latency_from_schedule_ms is not None
    assert step.latency_from_schedule_ms["p99"] > 60
    assert not step.holds
    assert "missed the 60 ms limit" in step.loadgen["reasons"][0]


def test_a_steady_service_holds_and_loadgen_agrees_on_the_p99(tmp_path: Path):
    with fake_service() as service:
        # So wide a limit holds on the busiest machine too.
        plan = StepPlan(service.url, rate=600, seconds=1, p99_ms=30_000)
        step = run_step(plan, tmp_path / "step")
    assert step.holds
    assert step.loadgen["valid"]
    assert step.n_queries == step.loadgen["n_queries"] == len(service.bodies)
    assert step.latency_from_schedule_ms is not None
    assert step.latency_from_send_ms is not None
    assert step.latency_from_schedule_ms["p99"] == pytest.approx(step.loadgen["p99_ms"], abs=0.001)
    assert step.latency_from_send_ms["p50"] <= step.latency_from_schedule_ms["p50"]
    assert step.server_stages_ms == {"queue": 0.5, "total": 2.0}


def test_quick_refusals_do_not_make_a_valid_run(tmp_path: Path):
    def one_in_ten_is_refused(number: int, body: dict[str, object]) -> bytes:
        return answer(429 if number % 10 == 0 else 200)

    # So few queries and so much time that a machine with other work answers in time as well.
    plan = StepPlan("", rate=50, seconds=1, p99_ms=3000, timeout_ms=30_000, max_error_rate=0.5)
    with fake_service(one_in_ten_is_refused) as service:
        step = run_step(StepPlan(**{**_fields(plan), "url": service.url}), tmp_path / "step")
    assert step.outcomes["http_429"] == step.n_queries // 10
    assert not step.loadgen["valid"]
    assert not step.holds
    assert step.p99_with_failures_ms is None
    assert step.latency_from_schedule_ms is not None
    assert step.latency_from_schedule_ms["p99"] < plan.p99_ms


def test_the_same_seed_gives_the_same_arrivals(tmp_path: Path):
    schedules = []
    with fake_service() as service:
        for name in ("first", "second"):
            run_step(StepPlan(service.url, rate=300, seconds=0.3, seed=5), tmp_path / name)
            schedules.append(Samples.load(tmp_path / name / SAMPLES_FILE).scheduled_s)
    np.testing.assert_allclose(schedules[0], schedules[1], atol=1e-8)


def test_a_broken_worker_says_what_broke(tmp_path: Path):
    plan = StepPlan("http://127.0.0.1:9", rate=10, seconds=1, queries=str(tmp_path / "gone.txt"))
    with pytest.raises(LoadTestError, match=r"broke down: .*gone\.txt cannot be read"):
        run_step(plan, tmp_path / "step")


def _fields(plan: StepPlan) -> dict[str, object]:
    return {name: getattr(plan, name) for name in plan.__slots__}
