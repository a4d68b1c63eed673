"""Fuzz every route of a running service, single and in chains, and count the requests.

    python -m tests.bench.fuzz_api [--cases 5000] [--examples 130] [--rounds 8] [--filtered]

Exits with 1 if it finds one of these faults:
- a 5xx, except a 504 to a request that set a deadline itself;
- a status, content type or body that OpenAPI does not document;
- an operation that never succeeded;
- no chain that adds a label and then looks it up, changes it and removes it;
- fewer cases than `--cases`.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.support.api_fuzz import (
    ADD,
    AFTER_ADD,
    BARE,
    FILTERED,
    PHASES,
    FuzzReport,
    fuzz,
    fuzzed_service,
)


def main() -> int:
    """Fuzz a service with every feature on; 0 if there is no fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--examples", type=int, default=130, help="for each operation and phase")
    parser.add_argument("--rounds", type=int, default=8, help="of stateful testing")
    parser.add_argument("--filtered", action="store_true", help="a bundle with an item filter")
    options = parser.parse_args()
    config = FILTERED if options.filtered else BARE
    started_s = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="astrolabe-fuzz-") as name,
        fuzzed_service(Path(name), options.filtered) as url,
    ):
        report = fuzz(url, config, Path(name), options.examples, rounds=options.rounds)
    show(report)
    print(f"{time.monotonic() - started_s:.0f} s")
    faults = list(report.faults)
    faults += [f"{operation}: never succeeded" for operation in report.unreached()]
    missing = AFTER_ADD - report.chained(ADD)
    faults += [f"{operation}: never succeeded with a label just added" for operation in missing]
    if report.n_cases < options.cases:
        faults.append(f"{report.n_cases} cases were sent, {options.cases} were asked for")
    print("\n".join(faults) or "nothing found")
    return 1 if faults else 0


def show(report: FuzzReport) -> None:
    """Print cases by operation and phase, answers by status, and how often each link was used."""
    print(f"{'':<54}" + "".join(f"{phase:>10}" for phase in PHASES) + f"{'2xx':>8}")
    for operation in sorted(report.cases, key=lambda each: each.split()[::-1]):
        counts = "".join(f"{report.cases[operation][phase]:>10}" for phase in PHASES)
        print(f"{operation:<54}{counts}{report.succeeded[operation]:>8}")
    sums = [sum(each[phase] for each in report.cases.values()) for phase in PHASES]
    print(f"{report.n_cases:<54}" + "".join(f"{each:>10}" for each in sums))
    print("answers:", dict(sorted(report.statuses.items())))
    for (link, succeeded), times in sorted(report.links.items()):
        print(f"{times:>6} {'succeeded' if succeeded else 'refused'}: {link}")


if __name__ == "__main__":
    sys.exit(main())
