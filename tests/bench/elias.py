"""Is ELIAS' learned index better than fixed clusters, and better than ASTRA?

    python -m tests.bench.elias --config models/configs/gutenberg-elias.toml \\
        --astra models/configs/gutenberg-bag.toml --var var --out docs/figures

Trains the configuration twice for the same number of epochs: with `elias.learned`, and with the
clusters fixed as ELIAS starts with them. With `--astra` it also trains ASTRA from a configuration
of its own with the same encoder. Prints P@1, P@5, R@10 and R@100 on the validation points: of ELIAS
at equal beams, of ASTRA with its own index at each effort. Standard errors let points of a series
vary together; the one of the learned index above fixed clusters is paired, on the same points. If a
run exists already, the script measures it without training. Runs with the same pre-training share
one pre-trained encoder.
"""

import argparse
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models import stages
from models.config import Config, load_config
from models.encoders.build import embed
from models.methods.elias import Elias
from models.quality.groups import clustered_error
from models.quality.metrics import precision_at_k, precision_of_each, recall_at_k
from models.quality.ranking import without
from models.runs import PRETRAINED_FILE, Run
from models.trained import load_model
from service.bundle.manifest import IndexInfo
from service.core.index.opening import open_label_index

BEAMS = (1, 2, 3, 5, 10, 20)
DEPTH = 100


def main() -> None:
    """Train the missing runs, measure all, and write elias-NAME.json and elias-NAME.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--astra", type=Path)
    parser.add_argument("--set", action="append", default=[], help="of all runs")
    parser.add_argument("--set-elias", action="append", default=[], help="of ELIAS' runs")
    parser.add_argument("--var", type=Path, default=Path("var"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    learned = load_config(args.config, [*args.set, *args.set_elias])
    epochs = learned.elias.fixed_epochs + learned.train.epochs
    fixed = load_config(
        args.config,
        [*args.set, *args.set_elias, "elias.learned=false", f"train.epochs={epochs}"],
    )
    results: list[dict[str, str | float]] = []
    right: dict[str, NDArray[np.float64]] = {}
    first: Run | None = None
    for system, config in (("fixed clusters", fixed), ("learned index", learned)):
        job = stages.TrainingJob.open(config, args.var)
        first = first or job.run
        _share_pretraining(first, job.run)
        stages.run_train(job)
        for row, first_right in _at_beams(job):
            search = str(row["search"])
            gain = first_right - right.setdefault(search, first_right)
            error = clustered_error(gain, job.validation.labelled_groups)
            paired = f"{100 * gain.mean():+.2f} +- {100 * error:.2f}"
            results.append({"system": system} | row | {"P@1 above fixed": paired})
    if args.astra:
        job = stages.TrainingJob.open(load_config(args.astra, args.set), args.var)
        assert first is not None
        _share_pretraining(first, job.run)
        for stage in (stages.run_train, stages.run_export, stages.run_index):
            stage(job)
        results += [{"system": "ASTRA"} | row | {"P@1 above fixed": ""} for row in _at_efforts(job)]
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"elias-{learned.name}"
    (args.out / f"{name}.json").write_text(json.dumps(results, indent=1))
    (args.out / f"{name}.md").write_text(_table(results))
    print(_table(results))


def _share_pretraining(first: Run, other: Run) -> None:
    """Let `other` start from the encoder of `first` if both pre-train it in the same way."""
    same = _pretraining(first.config) == _pretraining(other.config)
    record = first.measured().get("pretraining")
    if same and record and "pretraining" not in other.measured():
        shutil.copyfile(first.folder / PRETRAINED_FILE, other.folder / PRETRAINED_FILE)
        other.record(pretraining=record)


def _pretraining(config: Config) -> dict[str, object]:
    """What an encoder's pre-training depends on."""
    whole = config.model_dump()
    return {name: whole[name] for name in ("seed", "data", "validation", "encoder", "pretrain")}


def _at_beams(
    job: stages.TrainingJob,
) -> Iterator[tuple[dict[str, str | float], NDArray[np.float64]]]:
    """The figures at each beam, and for each point whether its first label is right."""
    model = load_model(job.run)
    assert isinstance(model, Elias)
    queries = embed(model.encoder, job.corpus.validation)
    n_clusters, settings = len(model.edges), model.elias
    for beam in [*(beam for beam in BEAMS if beam < n_clusters), n_clusters]:
        size = job.validation.truth.shape[1] if beam == n_clusters else settings.shortlist
        model.elias = settings.model_copy(update={"beam": beam, "shortlist": size})
        ranked = model.best(queries, DEPTH + job.validation.spare).labels
        labels = without(ranked, job.validation.filter_pairs, 1)
        right = precision_of_each(labels, job.validation.truth, 1)
        yield {"search": f"beam {beam} of {n_clusters}"} | _figures(job, ranked), right


def _at_efforts(job: stages.TrainingJob) -> Iterator[dict[str, str | float]]:
    model, measured = load_model(job.run), job.run.measured()
    queries = embed(model.encoder, job.corpus.validation)
    efforts = {point["name"]: point["params"] for point in measured["operating_points"]}
    info = IndexInfo.model_validate(measured["index"])
    index = open_label_index(job.run.folder, info, model.encoder.dim, efforts)
    for effort in efforts:
        ranked = index.search(queries, DEPTH + job.validation.spare, effort).rows
        yield {"search": f"{info.kind}, {effort}"} | _figures(job, ranked)


def _figures(job: stages.TrainingJob, ranked: NDArray[np.int64]) -> dict[str, str | float]:
    truth = job.validation.truth
    labels = without(ranked, job.validation.filter_pairs, DEPTH)
    first = precision_of_each(labels, truth, 1)
    error = 100 * clustered_error(first, job.validation.labelled_groups)
    return {
        "P@1": round(100 * first.mean(), 2),
        "+-": round(error, 2),
        "P@5": round(100 * precision_at_k(labels, truth, 5), 2),
        "R@10": round(100 * recall_at_k(labels, truth, 10), 2),
        "R@100": round(100 * recall_at_k(labels, truth, DEPTH), 2),
    }


def _table(results: list[dict[str, str | float]]) -> str:
    names = list(results[0])
    lines = [names, ["---"] * len(names), *([row[name] for name in names] for row in results)]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


if __name__ == "__main__":
    main()
