"""Do uniform negatives beside the hard ones make up for stale hard negatives, as ASTRA claims?

    python -m tests.bench.staleness --config models/configs/gutenberg-bag.toml --out docs/figures

Trains one model for each combination of refresh period (1, 5, never), negatives (hard only,
mixture) and weights (balance, unit). All have the same seed, rows and epochs, and the binary
cross-entropy alone: no early stopping, no pre-training, no label-text rows. Prints a table of
validation P@1 and P@5, of the best epoch and as the mean of the last two, and draws the curves. The
script does not train a model again whose curve staleness.json holds.
"""

import argparse
import json
import tempfile
from pathlib import Path

from models import stages
from models.config import Config, load_config
from models.runs import METRICS_FILE

PERIODS = {"1": 1, "5": 5, "never": 0}


def main() -> None:
    """Train the grid and write staleness.json, .md and .svg."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    curves_file = args.out / "staleness.json"
    curves = json.loads(curves_file.read_text()) if curves_file.is_file() else {}
    for period, epochs in PERIODS.items():
        for source in ("hard only", "mixture"):
            for weights in ("balance", "unit"):
                name = f"{period} / {source} / {weights}"
                if name in curves:
                    continue
                config = load_config(
                    args.config,
                    [
                        *args.set,
                        f"train.epochs={args.epochs}",
                        "train.patience=99",
                        "method.label_rows=false",
                        "method.softmax_share=0.0",
                        "pretrain.epochs=0",
                        f"method.refresh_epochs={epochs}",
                        f"method.hard_only={'true' if source == 'hard only' else 'false'}",
                        f'method.weights="{weights}"',
                    ],
                )
                curves[name] = _train(config)
                curves_file.write_text(json.dumps(curves, indent=1))
                print(name, curves[name][-1], flush=True)
    (args.out / "staleness.md").write_text(_table(curves))
    _draw(curves, args.out / "staleness.svg")
    print(_table(curves))


def _train(config: Config) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        job = stages.TrainingJob.open(config, Path(folder))
        stages.run_train(job)
        lines = (job.run.folder / METRICS_FILE).read_text().splitlines()
    return [json.loads(line) for line in lines]


def _table(curves: dict[str, list[dict[str, float]]]) -> str:
    rows = [
        "| refreshed every | negatives | weights | best P@1 | best P@5 | last two P@1 | P@5 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, records in curves.items():
        first, fifth = ([r[f"validation_p_at_{k}"] for r in records] for k in (1, 5))
        figures = (max(first), max(fifth), sum(first[-2:]) / 2, sum(fifth[-2:]) / 2)
        rows.append(
            f"| {' | '.join(name.split(' / '))} | "
            + " | ".join(f"{figure:.2f}" for figure in figures)
            + " |"
        )
    return "\n".join(rows) + "\n"


def _draw(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "staleness"
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, weights in zip(axes, ("balance", "unit"), strict=True):
        for name, records in curves.items():
            period, source, mode = name.split(" / ")
            if mode != weights:
                continue
            axis.plot(
                [record["epoch"] for record in records],
                [record["validation_p_at_1"] for record in records],
                label=f"{source}, {period}",
                linestyle="--" if source == "hard only" else "-",
                marker="o",
                markersize=3,
            )
        axis.set(title=f"weights: {weights}", xlabel="epoch")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("validation P@1, %")
    axes[1].legend(title="negatives, refreshed every", fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
