"""Puts a measurement into words: the verdict sentence, and the warnings that go with a number."""

from typing import Any

from loadtest.plan import StepPlan
from loadtest.result import Ceiling, StepResult
from loadtest.search import Found

NEAR_CEILING = 0.8  # a rate above this share of the client's ceiling may be the client's
SLOW_SENDING = 0.25  # of the limit: above it, the p99 says much about the client


def describe_step(step: StepResult, plan: StepPlan) -> str:
    """Say whether one rate holds, and if not, why."""
    latency = step.latency_from_schedule_ms
    p99 = f"p99 {latency['p99']:.2f} ms" if latency else "no usable answer"
    if step.holds:
        return f"VALID: {step.rate_asked:g}/s holds, {p99} (limit {plan.p99_ms:g} ms)."
    reasons = list(step.loadgen["reasons"])
    if step.error_rate > plan.max_error_rate:
        n_ok = step.outcomes.get("ok", 0)
        kinds = ", ".join(f"{name} {n:,}" for name, n in step.outcomes.items() if name != "ok")
        failed = f"{step.n_queries - n_ok:,} of {step.n_queries:,} queries failed ({kinds})"
        reasons.insert(0, f"{failed}, more than --max-error-rate {plan.max_error_rate:g} allows")
    return f"INVALID: {step.rate_asked:g}/s does not hold ({p99}): {'; '.join(reasons)}."


def describe_found(found: Found, p99_ms: float) -> str:
    """Say what a search came to."""
    if found.rate is None:
        return f"no rate was found to hold p99 {p99_ms:g} ms: {found.stopped}."
    state = "confirmed" if found.confirmed else "NOT confirmed"
    return f"{found.rate:g} queries/s at p99 {p99_ms:g} ms, {state} ({found.stopped})."


def warnings_for(
    step: StepResult | None,
    plan: StepPlan,
    ceiling: Ceiling | None,
    info: dict[str, Any] | None,
) -> list[str]:
    """Say what keeps the numbers of `step` from being the server's alone."""
    warnings = []
    if info is None:
        warnings.append("GET /v1/info gave no answer, so the result does not say which bundle ran.")
    elif info.get("adaptive_effort") is not None:
        warnings.append(
            f"the service lowers effort under load (adaptive_effort), so not every answer need be "
            f"{plan.effort}: compare astrolabe_effort_total before and after."
        )
    if step is None:
        return warnings
    if ceiling is not None and ceiling.rate is None:
        warnings.append(
            f"this client found no rate it can sustain at p99 {plan.p99_ms:g} ms: the machine is "
            "too busy to measure on."
        )
    elif ceiling is not None and step.rate_asked > NEAR_CEILING * (ceiling.rate or 0):
        warnings.append(
            f"{step.rate_asked:g}/s is within 20 % of what this client sustains by itself "
            f"({ceiling.rate:g}/s): the client may be the limit. Run it from another machine."
        )
    delay = step.send_delay_ms
    if delay is not None and delay["p99"] > SLOW_SENDING * plan.p99_ms:
        warnings.append(
            f"the client sent 1 % of the queries more than {delay['p99']:.1f} ms late; that is "
            "part of the latency above and not the server's doing."
        )
    if step.connections_opened >= plan.connections:
        warnings.append(
            f"all {plan.connections} connections were in use and queries waited for one; raise "
            "--connections."
        )
    return warnings
