"""Schemathesis against the running service, and a count of what it really sent.

Its command line and not its pytest plugin: that runs more phases (examples, coverage, fuzzing,
stateful), and stays out of our collection.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from service.bundle.manifest import MANIFEST
from tests.support.fakes import fake_settings
from tests.support.live import live_service
from tests.support.tiny_bundle import seal, write_filtered_bundle, write_tiny_bundle

ADMIN = "admin"
HOOKS = "tests.support.fuzz_hooks"
ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 1800
ANSWER_S = 120.0
"""No answer takes longer. The first one of OpenAPI costs 0.3 s of CPU: on a machine with twenty
processes for two cores that is over 5 s, which httpx allows by default."""
ADD = "POST /v1/labels"
AFTER_ADD = {f"{verb} /v1/labels/{{label_id}}" for verb in ("GET", "PUT", "DELETE")}
PHASES = ("examples", "coverage", "fuzzing", "stateful")
OTHER_METHODS = "methods that no path offers"
TIMEOUT = "x-request-timeout-ms"

# The fuzzer may ask for a deadline of 1 ms and then gets 429 or 504, documented and deserved. 405,
# 413 and 415 are how a method, a size and a content type are refused. Headers that nobody knows are
# no fault of a request.
BARE = """
[generation]
allow-extra-parameters = false
max-examples = EXAMPLES

[phases.stateful]
max-steps = 10
generation.max-examples = CHAINS

[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "504"]
negative_data_rejection.expected-statuses = [400, 401, 404, 405, 409, 413, 415, 422, 429, 504]
positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 429, 504]

# That shape, datatype and data of a tensor agree, that a text holds a visible character, and that
# dimensions are the model's is more than their schemas say.
[[operations]]
include-path-regex = "^/v2/|^/v1/embeddings$"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 404, 413, 429, 504]

# Neither are that whole numbers anywhere in metadata fit 64 bits and metadata 64 KiB, that the
# default model stays, and that a canary is another bundle than the current one.
[[operations]]
include-path-regex = "^/v1/recommend/by-embedding$|^/v1/label|^/admin/"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 404, 409, 413, 422, 429, 504]

# That a history has as many weights as texts, and an event a request or a text, is neither.
[[operations]]
include-path-regex = "^/v1/recommend$|^/v1/embed$|^/v1/feedback$"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 422, 429, 504]
"""

# That `item_id` is as long a list as `query`, and belongs to the bundle that answers, is more than
# JSON Schema can say.
FILTERED = BARE.replace('["2xx", 404, 409, 429', '["2xx", 404, 409, 422, 429')


@dataclass
class FuzzReport:
    """What was sent and answered; an operation is a method and a path of the schema."""

    operations: set[str] = field(default_factory=set)
    cases: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Operation, or OTHER_METHODS, to phase to requests."""
    statuses: Counter[int] = field(default_factory=Counter)
    succeeded: Counter[str] = field(default_factory=Counter)
    links: Counter[tuple[str, bool]] = field(default_factory=Counter)
    """Links followed in stateful testing, and whether the request succeeded."""
    faults: list[str] = field(default_factory=list)

    @property
    def n_cases(self) -> int:
        """Requests that were sent and answered."""
        return sum(self.statuses.values())

    def unreached(self) -> list[str]:
        """Operations that never succeeded."""
        return sorted(self.operations - set(self.succeeded))

    def chained(self, source: str) -> set[str]:
        """Operations that succeeded with what an answer of the source had linked to."""
        return {
            link.rpartition(" -> ")[2]
            for link, succeeded in self.links
            if succeeded and link.startswith(f"{source} -> ")
        }

    def add(self, scenario: dict[str, Any]) -> None:
        """Count one scenario of the fuzzer's report."""
        recorder, phase = scenario["recorder"], scenario["phase"]
        for case_id, case in recorder.get("cases", {}).items():
            interaction = recorder.get("interactions", {}).get(case_id, {})
            if (response := interaction.get("response")) is None:
                self.faults.append(f"{case['value']['path']}: no answer")
                continue
            operation = f"{case['value']['method']} {case['value']['path']}"
            status, known = response["status_code"], operation in self.operations
            self.cases[operation if known else OTHER_METHODS][phase] += 1
            self.statuses[status] += 1
            succeeded = 200 <= status < 300
            if succeeded and known:
                self.succeeded[operation] += 1
            if (transition := case.get("transition")) is not None:
                self.links[transition["id"], succeeded] += 1
            asked = {name.lower() for name in interaction["request"]["headers"]}
            if status >= 500 and not (status == 504 and TIMEOUT in asked):
                self.faults.append(f"{operation}: {status}")


@contextmanager
def fuzzed_service(folder: Path, filtered: bool) -> Iterator[str]:
    """A service with everything switched on, bundles where the schema's examples name them.

    Limits are small enough for a fuzzer to hit. With `filtered` the default bundle has an item
    filter. Yields its address.
    """
    root = folder / "bundles"
    bundle = root / "20261122-1f0c"
    if filtered:
        write_filtered_bundle(write_tiny_bundle(folder / "plain"), bundle)
    else:
        write_tiny_bundle(bundle)
    _rename(bundle, "gutenberg-bag")
    for name, kind in (("gutenberg-bag", "flat"), ("gutenberg-best", "hnsw")):
        _rename(write_tiny_bundle(root / name / "20261122-1f0c", kind=kind, memory=True), name)
    settings = fake_settings(
        max_text_chars=200,
        max_queries=4,
        lanes=2,
        admin_key=ADMIN,
        bundle=bundle,
        bundle_root=root,
        state_dir=folder / "state",
        feedback_dir=folder / "feedback",
        cache_entries=64,
        device="cpu",
        live_recall_share=0.1,
    )
    with live_service(bundle, settings) as address:
        yield address


def fuzz(
    url: str, config: str, folder: Path, examples: int, chains: int = 400, rounds: int = 1
) -> FuzzReport:
    """Run every phase over every operation, with at most so many examples for each.

    Stateful testing tries at most so many chains of requests. It ends by itself where it finds
    nothing new to try, so it may be run in several rounds, each with another seed. What
    Schemathesis complains of ends in `faults`, with the end of its output.
    """
    config = config.replace("EXAMPLES", str(examples)).replace("CHAINS", str(chains))
    (folder / "st.toml").write_text(config)
    report = FuzzReport(_operations(url))
    for seed in range(1, rounds + 1):
        _round(url, folder, PHASES if seed == 1 else PHASES[-1:], seed, report)
    return report


def _round(url: str, folder: Path, phases: Sequence[str], seed: int, report: FuzzReport) -> None:
    """Run these phases and add what they did to a report."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "st.toml", "run"]
    command += [f"{url}/openapi.json", "--wait-for-schema", str(ANSWER_S), "--checks", "all"]
    command += ["--request-timeout", str(ANSWER_S)]
    command += ["--header", f"Authorization: Bearer {ADMIN}", "--phases", ",".join(phases)]
    # How fast examples are made says something of this machine, and nothing of the service.
    command += ["--seed", str(seed), "--no-color", "--suppress-health-check", "too_slow"]
    command += ["--report", "ndjson", "--report-ndjson-path", "report.ndjson"]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "SCHEMATHESIS_HOOKS": HOOKS, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    with (folder / "report.ndjson").open(encoding="utf-8") as lines:
        for line in lines:
            event = json.loads(line)
            if "ScenarioFinished" in event:
                report.add(event["ScenarioFinished"])
    selected = re.search(r"Selected: (\d+)/(\d+)", done.stdout)
    if selected is None or {int(each) for each in selected.groups()} != {len(report.operations)}:
        report.faults.append("not every operation was tested")
    if done.returncode:
        report.faults.append(done.stdout[-6000:] + done.stderr[-2000:])


def _operations(url: str) -> set[str]:
    document = httpx.get(f"{url}/openapi.json", timeout=ANSWER_S).json()
    return {f"{verb.upper()} {path}" for path, each in document["paths"].items() for verb in each}


def _rename(bundle: Path, name: str) -> None:
    seal(bundle, json.loads((bundle / MANIFEST).read_text()) | {"name": name})
