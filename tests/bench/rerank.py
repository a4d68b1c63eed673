"""What does a second stage gain, and by which features? On the validation points of a run.

    python -m tests.bench.rerank --run var/runs/gutenberg-bag/<digest> \\
        --without --trees 120 --leaves 15

The run must be trained, with `rerank.kind` set. The first table compares the classifier, the memory
blended as is best on these very points (if the run has one) and the trees. The second leaves one
feature out at a time and grows the trees anew. Differences are paired, and their standard errors
let points of a series vary together. Search is exact. Trees never saw a validation point, so their
settings can be compared here, by `--trees` and `--leaves`.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.encoders.build import embed
from models.index.efforts import exact_index
from models.index.memory import Grid, Memory, choose
from models.quality.groups import clustered_error
from models.quality.metrics import (
    inverse_propensity,
    ndcg_of_each,
    precision_of_each,
    psp_at_k,
)
from models.quality.ranking import EmbeddedSet, top_products
from models.rerank.choice import learn
from models.rerank.examples import Examples, usable_features
from models.stages import TrainingJob, held_out_examples, scorer_of
from models.trained import load_model
from service.bundle.manifest import EXACT
from service.core.index.augmented import Blend, blend
from service.core.rerank.reranker import reorder
from service.core.types import Hits

TOP = 5
Figures = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]


class Bench:
    """The validation points of a run, and what its rankings of them are worth."""

    def __init__(self, job: TrainingJob, validation: EmbeddedSet) -> None:
        self.validation = validation
        counts = np.asarray(job.training_labels.sum(axis=0)).ravel()
        self._weights = inverse_propensity(counts, len(job.parts.train_rows))

    def figures(self, rows: NDArray[np.int64]) -> Figures:
        """P@1, P@5 and nDCG@5 of each point that has a label, and PSP@5 of all."""
        truth = self.validation.truth
        ranked = self.validation.first(rows, TOP)
        return (
            precision_of_each(ranked, truth, 1),
            precision_of_each(ranked, truth, TOP),
            ndcg_of_each(ranked, truth, TOP),
            psp_at_k(ranked, truth, self._weights, TOP),
        )

    def line(self, name: str, figures: Figures, before: Figures | None = None) -> str:
        """A row of a table; with `before`, paired differences from it and their errors."""
        cells = [name]
        for place in range(3):
            values = figures[place]
            cell = f"{100 * values.mean():.2f}"
            if before is not None:
                change = values - before[place]
                error = clustered_error(change, self.validation.labelled_groups)
                cell += f" ({100 * change.mean():+.2f} ± {100 * error:.2f})"
            cells.append(cell)
        return f"| {' | '.join([*cells, f'{100 * figures[3]:.2f}'])} |"


def without(examples: Examples | None, place: int) -> Examples | None:
    """The examples without one of their features; None if there are none."""
    if examples is None:
        return None
    return replace(examples, features=np.delete(examples.features, place, axis=2))


def blended(found: Hits, memory: Memory, validation: EmbeddedSet, bias: float) -> NDArray[np.int64]:
    """The ranking with the memory in every score, by the best setting on these very points."""
    nearest = exact_index(memory.vectors).search(validation.queries, 100, EXACT)
    best = choose(found, nearest, memory.labels, validation, bias, Grid(demanded=True)).chosen
    setting = Blend(best.weight, best.temperature, best.neighbours, found.rows.shape[1], bias)
    some = Hits(nearest.rows[:, : best.neighbours], nearest.scores[:, : best.neighbours])
    n_labels = validation.truth.shape[1]
    return blend(found, some, memory.labels, setting, n_labels, TOP + validation.spare).rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--without", action="store_true", help="leave out one feature at a time")
    parser.add_argument("--trees", type=int, help="instead of the run's rerank.trees")
    parser.add_argument("--leaves", type=int, help="instead of the run's rerank.leaves")
    args = parser.parse_args()
    job = TrainingJob.of_run(args.run, args.run.parents[2])
    other = {name: getattr(args, name) for name in ("trees", "leaves") if getattr(args, name)}
    config, seed = job.run.config.rerank.model_copy(update=other), job.run.config.seed
    model, texts = load_model(job.run), job.corpus.validation
    scorer = scorer_of(job, model.servable().label_vectors)
    validation = job.validation.of(embed(model.encoder, texts))
    names = usable_features(scorer.memory is not None)
    judged = scorer.describe(names, config.depth, validation, texts)
    learnt = held_out_examples(job, names)
    bench = Bench(job, validation)
    found = Hits(*top_products(validation.queries, scorer.vectors, 50))
    first = Hits(judged.rows, judged.logits)
    print("| | P@1 | P@5 | nDCG@5 | PSP@5 |\n|---|---|---|---|---|")
    classifier = bench.figures(found.rows)
    print(bench.line("classifier", classifier))
    if scorer.memory is not None:
        rows = blended(found, scorer.memory, validation, job.run.config.method.logit_bias)
        print(bench.line("memory, blended", bench.figures(rows), classifier))
    start = time.process_time()
    _, scores = learn(learnt, judged, names, config, seed)
    whole = bench.figures(reorder(found, first, scores).rows)
    print(bench.line("trees", whole, classifier))
    print(f"\n{time.process_time() - start:.0f} CPU s for {config.trees} trees", flush=True)
    if not args.without:
        return
    print("\n| trees without | P@1 | P@5 | nDCG@5 | PSP@5 |\n|---|---|---|---|---|")
    for place, name in enumerate(names):
        others = [each for each in names if each != name]
        fewer = without(judged, place)
        assert fewer is not None
        _, scores = learn(without(learnt, place), fewer, others, config, seed)
        rows = reorder(found, first, scores).rows
        print(bench.line(f"`{name}`", bench.figures(rows), whole), flush=True)


if __name__ == "__main__":
    main()
