"""What does an epoch of ASTRA and of full BCE cost as the number of labels grows?

    python -m tests.bench.training_cost --labels 10000 100000 1000000 --out docs/figures

The data are synthetic: random token ids, a bag encoder with random weights, and random label
vectors, whose values do not change the time. Every number of labels gets the same number of
training points, and there are no label-text rows.

Of ASTRA the script times all steps of an epoch and one refresh, of which an epoch bears the share
1 / `REFRESH_EPOCHS`. Of full BCE it times `--full-steps` steps and scales them to an epoch. Seconds
are CPU seconds of all threads, so other jobs on the machine count little. Each case runs in a
process of its own, to tell its peak memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

REFRESH_EPOCHS = 5
"""Epochs from one refresh of the hard negatives to the next."""


def main() -> None:
    """Run every case in a child process; write training_cost.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", default=["astra", "full-bce"])
    parser.add_argument("--points", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--full-steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--case", nargs=2, metavar=("KIND", "LABELS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(_measure(args, args.case[0], int(args.case[1]))))
        return
    results = []
    for n_labels in args.labels:
        for kind in args.kinds:
            command = [sys.executable, "-m", "tests.bench.training_cost", "--case", kind]
            command += [str(n_labels), "--points", str(args.points), "--dim", str(args.dim)]
            command += ["--batch", str(args.batch)]
            command += ["--full-steps", str(args.full_steps), "--out", str(args.out)]
            command += ["--threads", str(args.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout))
            print(results[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "training_cost.json").write_text(json.dumps(results, indent=1))
    (args.out / "training_cost.md").write_text(_table(results))
    print(_table(results))


def _measure(args: argparse.Namespace, kind: str, n_labels: int) -> dict[str, float | str]:
    import torch
    from scipy.sparse import csr_array

    from models.config import MethodConfig, TrainConfig
    from models.data.tokens import TokenizedTexts
    from models.encoders.bag import BagEncoder
    from models.encoders.build import parameter_groups
    from models.methods.astra import Astra
    from models.rng import Rng
    from models.training.optimizers import LABELS, Optimizers
    from models.training.training_rows import TrainingRows

    torch.set_num_threads(args.threads)
    rng = Rng.from_seed(1)
    n, length, per_point = args.points, 12, 3
    ids = rng.numpy.integers(5, 30_000, n * length, dtype=np.int32)
    texts = TokenizedTexts(ids, np.arange(n + 1) * length, 0)
    # Zipf-like frequencies, as real label sets have.
    drawn = (n_labels ** rng.numpy.random(n * per_point)).astype(np.int64) - 1
    places = np.repeat(np.arange(n), per_point)
    labels = csr_array((np.ones(len(drawn), np.float32), (places, drawn)), shape=(n, n_labels))
    labels.data[:] = 1.0
    rows = TrainingRows(texts, labels, csr_array((n, n_labels), dtype=np.float32), [""] * n)
    encoder = BagEncoder(torch.randn(30_522, args.dim, generator=rng.torch), 65_536)
    vectors = torch.nn.functional.normalize(
        torch.randn(n_labels, args.dim, generator=rng.torch), dim=1
    )
    model = Astra(encoder, vectors, MethodConfig(kind=kind, refresh_epochs=REFRESH_EPOCHS))
    del vectors
    groups = parameter_groups(encoder) | {LABELS: list(model.labels.parameters())}
    config = TrainConfig(batch_size=args.batch)
    optimizers = Optimizers(groups, config)
    scaler = torch.amp.GradScaler(enabled=False)
    refresh_s = 0.0
    if kind == "astra":
        started = time.process_time()
        model.refresh(rows)
        refresh_s = time.process_time() - started
    order = rng.numpy.permutation(n)
    batches = np.array_split(order, n // config.batch_size)
    n_timed = len(batches) if kind == "astra" else min(args.full_steps, len(batches))
    step_s = []
    for batch in batches[: n_timed + 1]:
        started = time.process_time()
        optimizers.zero_grad()
        model.train_step(rows, batch, rng).backward()
        optimizers.step(1.0, scaler)
        step_s.append(time.process_time() - started)
    # The first step also allocates the state of the optimisers, so it does not count.
    steps_s = float(np.mean(step_s[1:])) * len(batches)
    return {
        "kind": kind,
        "labels": n_labels,
        "points": n,
        "batch": config.batch_size,
        "step_cpu_ms": round(1e3 * steps_s / len(batches), 1),
        "steps_cpu_s": round(steps_s, 1),
        "refresh_cpu_s": round(refresh_s, 1),
        "epoch_cpu_s": round(steps_s + refresh_s / REFRESH_EPOCHS, 1),
        "timed_steps": len(step_s) - 1,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _table(results: list[dict[str, float | str]]) -> str:
    names = ("kind", "labels", "points", "batch", "step_cpu_ms", "steps_cpu_s")
    names += ("refresh_cpu_s", "epoch_cpu_s", "peak_memory_mb")
    rows = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    rows += ["| " + " | ".join(str(result[name]) for name in names) + " |" for result in results]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
