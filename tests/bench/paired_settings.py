"""What does a setting change on validation points, beyond chance?

    python -m tests.bench.paired_settings --config models/configs/gutenberg-bag.toml \\
        --with method.label_cooccurrence=0.5

Trains the configuration as it is and with the settings `--with`, by the same seed and on the same
points, and ranks the validation points by exact search. Prints figures of both, and their paired
differences with standard errors in which points of a group vary together. Each of several `--seeds`
draws validation points of its own; the last lines are means, with errors combined as independent.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models import stages
from models.config import load_config
from models.encoders.build import embed
from models.quality.groups import Groups, clustered_error
from models.quality.metrics import ndcg_of_each, precision_of_each
from models.trained import load_model

MEASURES = {
    "P@1": (precision_of_each, 1),
    "P@5": (precision_of_each, 5),
    "nDCG@5": (ndcg_of_each, 5),
}


def main() -> None:
    """Train both for each seed, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], help="of both")
    parser.add_argument("--with", dest="given", action="append", default=[], help="of one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--var", type=Path, default=Path("var"))
    args = parser.parse_args()
    means: dict[str, list[tuple[float, float, float]]] = {name: [] for name in MEASURES}
    for seed in args.seeds:
        settings = [*args.set, f"seed={seed}"]
        plain, groups = _measure(args.config, settings, args.var)
        other, _ = _measure(args.config, [*settings, *args.given], args.var)
        for name in MEASURES:
            difference = other[name] - plain[name]
            row = plain[name].mean(), other[name].mean(), clustered_error(difference, groups)
            means[name].append(row)
            print(f"seed {seed}  {name:<7} {_line(*row)}", flush=True)
    if len(args.seeds) > 1:
        for name, rows in means.items():
            plain_mean, other_mean, _ = np.mean(rows, axis=0)
            error = float(np.sqrt(sum(row[2] ** 2 for row in rows)) / len(rows))
            print(f"mean    {name:<7} {_line(plain_mean, other_mean, error)}")


def _measure(
    path: Path, settings: list[str], var: Path
) -> tuple[dict[str, NDArray[np.float64]], Groups]:
    """Each measure of each validation point, and the points' groups."""
    job = stages.TrainingJob.open(load_config(path, settings), var)
    stages.run_train(job)
    model, validation = load_model(job.run), job.validation
    queries = embed(model.encoder, validation.queries)
    ranked = validation.first(model.best(queries, 5 + validation.spare).labels, 5)
    figures = {
        name: of_each(ranked, validation.truth, k) for name, (of_each, k) in MEASURES.items()
    }
    return figures, validation.labelled_groups


def _line(plain: float, other: float, error: float) -> str:
    return (
        f"{100 * plain:6.2f} {100 * other:6.2f}  {100 * (other - plain):+.2f} +- {100 * error:.2f}"
    )


if __name__ == "__main__":
    main()
