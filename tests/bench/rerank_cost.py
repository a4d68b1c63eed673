"""CPU time of each stage of a bundle that re-ranks, by effort, alone and in batches of 16.

    python -m tests.bench.rerank_cost BUNDLE [--batch 16] [--rounds 40] [--variant fp32]

The bundle's golden queries are asked in process, on one thread. Times are those of the thread's own
clock (CPU, not the wall), in microseconds a query: the least of the rounds, so that what else the
machine does counts as little as it can.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from service.core.engine import Engine
from service.core.types import Query

STAGES = ("tokenize", "encode", "search", "rerank")


def measure(engine: Engine, effort: str, batch: int, rounds: int) -> dict[str, float]:
    """Least microseconds of CPU a query in each stage, and in all of them together."""
    texts = [item.query for item in engine.manifest.golden]
    queries = [Query(text, engine.manifest.defaults.k, effort) for text in texts]
    batches = [queries[start : start + batch] for start in range(0, len(queries), batch)]
    sums = []
    for _ in range(rounds):
        totals = dict.fromkeys(STAGES, 0.0)
        for some in batches:
            for name, seconds in engine.predict(some).timings.stages.items():
                totals[name] += seconds
        sums.append(totals)
    best = {name: min(totals[name] for totals in sums) for name in STAGES}
    best["all"] = min(sum(totals.values()) for totals in sums)
    return {name: 1e6 * seconds / len(queries) for name, seconds in best.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--variant", help="precision of the encoder")
    options = parser.parse_args()
    opened = Engine.open(options.bundle, device="cpu", variant=options.variant)
    engine = replace(opened, clock=time.thread_time)
    print(f"{engine.manifest.name} {engine.manifest.bundle_id[:12]}, us of CPU a query")
    print("effort      batch" + "".join(f"{name:>10}" for name in (*STAGES, "all")))
    for effort in engine.efforts:
        for batch in (1, options.batch):
            figures = measure(engine, effort, batch, options.rounds)
            shown = "".join(f"{figures[name]:10.1f}" for name in (*STAGES, "all"))
            print(f"{effort:10}{batch:7}{shown}")


if __name__ == "__main__":
    main()
