"""What does it cost to order 100 candidates by maximal marginal relevance?

    python -m tests.bench.diversity_cost --rounds 7

Prints CPU microseconds a query, alone and in a batch of 64. Set OMP_NUM_THREADS=1 and
OPENBLAS_NUM_THREADS=1.
"""

import argparse
import time

import numpy as np

from service.core.diversity import DIVERSITY_DEPTH, diversify

DIM, K = 384, 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    rng = np.random.default_rng(0)
    for n, repeats in ((1, 20), (64, 2)):
        scores = -np.sort(-rng.random((n, DIVERSITY_DEPTH)).astype(np.float32))
        vectors = rng.standard_normal((n, DIVERSITY_DEPTH, DIM)).astype(np.float32)
        tiers = np.zeros(scores.shape, np.int64)
        costs_us = []
        for _ in range(rounds):
            began_s = time.process_time()
            for _ in range(repeats):
                diversify(scores, tiers, vectors, 0.5, K)
            costs_us.append((time.process_time() - began_s) / repeats / n * 1e6)
        print(
            f"batch of {n}: median {np.median(costs_us):.0f}, least {min(costs_us):.0f} us a query"
        )


if __name__ == "__main__":
    main()
