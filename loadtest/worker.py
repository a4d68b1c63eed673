"""The process that runs one step: `python -m loadtest.worker FOLDER`. step.py starts it.

It reads plan.json from the folder, runs LoadGen with the HTTP client, and writes step.json and
samples.npz into the folder, beside LoadGen's logs.
"""

from loadtest.child import exit_with_parent

if __name__ == "__main__":
    exit_with_parent()  # before the imports below, which are slow

import gc
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from loadtest.client.client import Client
from loadtest.client.outcomes import count_outcomes
from loadtest.headers import of_worker
from loadtest.loadgen import complete, run_loadgen
from loadtest.loadgen_log import TRACE, Verdict, read_trace, read_verdict
from loadtest.plan import StepPlan
from loadtest.queries import load_queries
from loadtest.result import StepResult, write_whole
from loadtest.samples import SAMPLES_FILE, Samples, join
from loadtest.step import PLAN_FILE, STEP_FILE
from loadtest.summary import answered_rate, latency_summary, mean_stages, p99_with_failures

# LoadGen's thread and the event loop share the interpreter lock. By default Python makes a thread
# hand it over after 5 ms, which would show in the p99 of a service that answers in 1 ms. A tenth of
# that is a choice: shorter means more hand-overs, and so more CPU.
SWITCH_INTERVAL_S = 0.0005


def main(folder: Path) -> None:
    """Run the step whose plan lies in `folder`. Raises LoadTestError and UsageError."""
    plan = StepPlan.read(folder / PLAN_FILE)
    texts = load_queries(plan.queries)
    client = Client(plan, texts, complete, of_worker())
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # A pause of the collector would look like latency, and the client makes no reference cycles.
    gc.disable()
    client.start()
    cpu_s = time.process_time()
    run_loadgen(plan, len(texts), client.issue, folder)
    cpu_s = time.process_time() - cpu_s
    client.stop()
    verdict = read_verdict(folder)
    samples = join(read_trace(folder), client.recorder)
    (folder / TRACE).unlink()  # about 700 bytes a query, and samples.npz has its numbers
    samples.save(folder / SAMPLES_FILE)
    step = _summarise(folder.name, plan, samples, verdict, client, cpu_s)
    write_whole(folder / STEP_FILE, json.dumps(asdict(step), indent=2) + "\n")


def _summarise(
    name: str, plan: StepPlan, samples: Samples, verdict: Verdict, client: Client, cpu_s: float
) -> StepResult:
    ok = samples.ok
    from_schedule_s, from_send_s = samples.from_schedule_s[ok], samples.from_send_s[ok]
    error_rate = float(1 - ok.mean())
    return StepResult(
        name=name,
        rate_asked=plan.rate,
        rate_scheduled=verdict.scheduled_rate,
        rate_answered=answered_rate(samples),
        seconds=plan.seconds,
        n_queries=len(samples.code),
        outcomes=count_outcomes(samples.code.tolist()),
        error_rate=error_rate,
        latency_from_schedule_ms=latency_summary(from_schedule_s),
        latency_from_send_ms=latency_summary(from_send_s),
        send_delay_ms=latency_summary(from_schedule_s - from_send_s),
        p99_with_failures_ms=p99_with_failures(samples),
        server_stages_ms=mean_stages(client.recorder.server_timing),
        loadgen=asdict(verdict),
        client_cpu_s=round(cpu_s, 3),
        connections_opened=client.n_opened,
        holds=verdict.valid and error_rate <= plan.max_error_rate,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
