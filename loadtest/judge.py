"""Puts a measurement into words: a sentence with the verdict, and warnings about the numbers."""

from typing import Any

from loadtest.plan import StepPlan
from loadtest.result import Ceiling, StepResult
from loadtest.search import SearchOutcome

# Both thresholds are choices; they decide on a warning and never on a verdict.
NEAR_CEILING = 0.8  # share of the client's ceiling above which the client may be the bottleneck
SLOW_SENDING = 0.25  # share of the p99 limit above which late sending distorts the p99


def describe_step(step: StepResult, plan: StepPlan) -> str:
    """Return the verdict on one rate as a sentence, with the reasons where it does not hold."""
    latency = step.latency_from_schedule_ms
    p99 = f"p99 {latency['p99']:.2f} ms" if latency else "no usable answer"
    if step.holds:
        return f"VALID: {step.rate_asked:g}/s holds, {p99} (limit {plan.p99_ms:g} ms)."
    reasons = list(step.loadgen["reasons"])
    if step.error_rate > plan.max_error_rate:
        n_ok = step.outcomes.get("ok", 0)
        kinds = ", ".join(f"{name} {n:,}" for name, n in step.outcomes.items() if name != "ok")
        failures = f"{step.n_queries - n_ok:,} of {step.n_queries:,} queries failed ({kinds})"
        reasons.insert(0, f"{failures}, more than --max-error-rate {plan.max_error_rate:g} allows")
    return f"INVALID: {step.rate_asked:g}/s does not hold ({p99}): {'; '.join(reasons)}."


def describe_search(outcome: SearchOutcome, p99_ms: float) -> str:
    """Return the outcome of a search as a sentence."""
    if outcome.rate is None:
        return f"no rate was found to hold p99 {p99_ms:g} ms: {outcome.stop_reason}."
    state = "confirmed" if outcome.confirmed else "NOT confirmed"
    return f"{outcome.rate:g} queries/s at p99 {p99_ms:g} ms, {state} ({outcome.stop_reason})."


def warnings_for(
    step: StepResult | None,
    plan: StepPlan,
    ceiling: Ceiling | None,
    info: dict[str, Any] | None,
) -> list[str]:
    """Return a sentence for each reason to doubt that the numbers of `step` are the server's.

    `info` is the answer of GET /v1/info, None where there was none.
    """
    warnings = []
    if info is None:
        warnings.append("GET /v1/info gave no answer, so the result cannot say which bundle ran.")
    elif info.get("adaptive_effort") is not None:
        warnings.append(
            f"the service lowers effort under load (adaptive_effort), so not every answer need be "
            f"{plan.effort}: compare astrolabe_effort_total before and after."
        )
    if step is None:
        return warnings
    if ceiling is not None and ceiling.rate is None:
        warnings.append(
            f"this client sustains no rate at p99 {plan.p99_ms:g} ms by itself: the machine is "
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
            f"the client sent 1 % of the queries more than {delay['p99']:.1f} ms late; the "
            "latencies above include that delay, which the server did not cause."
        )
    if step.connections_opened >= plan.connections:
        warnings.append(
            f"the client opened {step.connections_opened} connections, so queries may have waited "
            f"for one of the {plan.connections} that it may hold; raise --connections."
        )
    return warnings
