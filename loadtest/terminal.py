"""Prints to the terminal: a line after each step, and tables at the end."""

from rich.console import Console
from rich.table import Table

from loadtest.result import Result, StepResult


def show_step(console: Console, step: StepResult) -> None:
    """Print one line on a step that has ended."""
    latency = step.latency_from_schedule_ms
    p99 = f"p99 {latency['p99']:.2f} ms" if latency else "no answers"
    errors = f", {step.error_rate:.2%} failed" if step.error_rate else ""
    state = "holds"
    if not step.holds:
        state = "; ".join(["does not hold", *step.loadgen["reasons"][:1]])
    line = f"  {step.name}: {step.rate_asked:g}/s, {p99}{errors}: {state}"
    console.print(line, highlight=False, soft_wrap=True)


def show_result(console: Console, result: Result) -> None:
    """Print the result's tables, its warnings and its verdict."""
    step = result.answer_step or (result.steps[-1] if result.steps else None)
    if step is not None:
        console.print(_latency_table(step))
        console.print(_facts_table(step, result))
    for warning in result.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False)
    style = "bold green" if result.ok else "bold red"
    console.print(result.verdict, style=style, highlight=False)


def _latency_table(step: StepResult) -> Table:
    table = Table(title=f"Latency in ms at {step.rate_asked:g} queries/s")
    latencies = {
        "from schedule": step.latency_from_schedule_ms,
        "from send": step.latency_from_send_ms,
        "send delay": step.send_delay_ms,
    }
    names = ("p50", "p90", "p95", "p99", "p99.9", "max", "mean")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for title, latency in latencies.items():
        table.add_row(title, *(f"{latency[name]:.2f}" if latency else "-" for name in names))
    return table


def _facts_table(step: StepResult, result: Result) -> Table:
    table = Table(show_header=False)
    outcomes = ", ".join(f"{name} {count:,}" for name, count in step.outcomes.items())
    table.add_row("queries", f"{step.n_queries:,} ({outcomes})")
    table.add_row(
        "answered", f"{step.rate_answered:,.1f}/s of {step.rate_scheduled:,.1f} scheduled"
    )
    if step.server_stages_ms:
        stages = ", ".join(f"{name} {ms:g}" for name, ms in step.server_stages_ms.items())
        table.add_row("server stages, mean ms", stages)
    table.add_row("client", f"{step.client_cpu_s:g} CPU s, {step.connections_opened} connections")
    if result.ceiling is not None and result.ceiling.rate is not None:
        table.add_row("client ceiling", f"{result.ceiling.rate:,.0f}/s")
    return table
