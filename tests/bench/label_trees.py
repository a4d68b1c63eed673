"""Does a label tree with frequent labels near its root answer sooner? Depth against microseconds.

    python -m tests.bench.label_trees --run var/runs/<name>/<digest> --leaf 1 --out var/trees

Grows and trains a tree for each gamma and each lambda over a trained run's label vectors. Reports
of each tree the paper's proxy D(T) beside its bounds, and at each beam:
- the classifiers evaluated, and the multiply-adds;
- the microseconds of a query on one thread, alone and in one batch with all others; each is the
  least of several rounds, in which the trees take turns;
- precision on the validation points, or with `--test` on the test points.

"P@1 at equal time" is the P@1 that a tree reaches in the p50 of the first tree at `--beam`. The
script keeps embeddings in `--work`. Writes label-trees-NAME-leafN.json, .md and .svg.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.config import Config
from models.data.dataset import point_texts
from models.data.filters import filtered_pairs
from models.data.prepare import open_configured, split, tokenizer_of
from models.data.tokens import tokenize_texts
from models.export.export_onnx import encode_with
from models.export.precisions import Exported
from models.index.efforts import machine, one_by_one_us
from models.label_trees.shape import (
    EntropySplit,
    MassBalance,
    Rule,
)
from models.methods.tree import DenseForest, TreeConfig, train_forest
from models.quality.metrics import inverse_propensity, precision_at_k, psp_at_k
from models.quality.ranking import spare, without
from models.runs import encoder_file, read_run
from models.trained import load_model
from service.core.encoding.encoder import OnnxEncoder
from service.core.index.label_tree import DenseScorer, LabelTreeIndex
from service.core.index.tree_beam import Blocks
from tests.support.tree_depth import entropy, expected_depth, huffman_depth

GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0)
LAMBDAS = (0.02, 0.1, 0.5)
BEAMS = (10, 20, 50, 100)  # a beam of single labels below k is widened
_DEPTH = 10


@dataclass(frozen=True)
class World:
    """The label vectors of a run, its training points, and the queries that trees are scored on.

    `vectors` (labels, dim), `points` (n, dim) with `labels` (n, labels), `queries` (m, dim) with
    `truth` (m, labels). `filtered` holds the filter pairs of the queries, `counts` the frequency of
    each label.
    """

    config: Config
    vectors: NDArray[np.float32]
    points: NDArray[np.float32]
    labels: csr_array
    queries: NDArray[np.float32]
    truth: csr_array
    filtered: NDArray[np.int64]
    counts: NDArray[np.int64]

    def rank(self, index: LabelTreeIndex, effort: str) -> NDArray[np.int64]:
        """The first ten labels of each query, without the filtered ones."""
        rows = index.search(self.queries, _DEPTH + spare(self.filtered), effort).rows
        return without(rows, self.filtered, _DEPTH)

    def figures(self, rows: NDArray[np.int64]) -> dict[str, float]:
        """P@1, P@5 and PSP@5 in percent."""
        metrics = self.config.metrics
        weights = inverse_propensity(
            self.counts, self.labels.shape[0], metrics.propensity_a, metrics.propensity_b
        )
        figures = {
            "p_at_1": precision_at_k(rows, self.truth, 1),
            "p_at_5": precision_at_k(rows, self.truth, 5),
            "psp_at_5": psp_at_k(rows, self.truth, weights, 5),
        }
        return {name: round(100 * value, 2) for name, value in figures.items()}


def of_run(folder: Path, work: Path, test: bool) -> World:
    """The world of a trained and exported run, embedded by the encoder that serves."""
    run = read_run(folder)
    config = run.config
    dataset = open_configured(config)
    parts = split(config, dataset)
    train = dataset.train.labels
    filtered = filtered_pairs(dataset.train_filter, *train.shape)
    embeddings_file = work / f"{config.name}-{folder.name}.npz"
    tokenizer = tokenizer_of(run, "query")
    encoder = OnnxEncoder(run.folder / encoder_file(Exported.of(run).served), "cpu")
    if not embeddings_file.is_file():
        texts = tokenize_texts(tokenizer, point_texts(dataset.train, config.data.fields))
        np.savez(embeddings_file, points=encode_with(encoder, texts))
    points = np.load(embeddings_file)["points"]
    labels = csr_array(train[parts.train_rows] > 0, dtype=np.float32)
    if test:
        if dataset.test is None:
            raise SystemExit(f"{dataset.name} has no test points")
        texts = tokenize_texts(tokenizer, point_texts(dataset.test, config.data.fields))
        queries, truth = encode_with(encoder, texts), dataset.test.labels
        filtered = filtered_pairs(dataset.test_filter, *truth.shape)
    else:
        queries, truth = points[parts.validation_rows], train[parts.validation_rows]
        filtered = filtered[parts.validation_rows]
    return World(
        config,
        load_model(run).servable().label_vectors,
        points[parts.train_rows],
        labels,
        queries,
        truth,
        np.stack(filtered.tocoo().coords, axis=1).astype(np.int64),
        np.bincount(labels.indices, minlength=labels.shape[1]),
    )


def index_of(forest: DenseForest, beams: tuple[int, ...]) -> LabelTreeIndex:
    """The index of a forest; its efforts have the beams as names."""
    efforts = {str(beam): {"beam": beam} for beam in beams}
    return LabelTreeIndex(forest.beam, forest.weights, forest.bias, efforts | {"exact": {}})


def evaluated(forest: DenseForest, queries: NDArray[np.float32], beam: int) -> tuple[float, float]:
    """Number of node classifiers and of label classifiers that a query evaluates, on average."""
    score = DenseScorer(queries, forest.weights, forest.bias)
    counts = {"nodes": 0, "labels": 0}

    def counting(blocks: Blocks) -> NDArray[np.float32]:
        n_nodes = int((blocks.items < forest.beam.forest.n_nodes).sum())
        counts["nodes"] += n_nodes
        counts["labels"] += len(blocks.items) - n_nodes
        return score(blocks)

    forest.beam.labels(forest.beam.leaves(counting, len(queries), beam), counting)
    return counts["nodes"] / len(queries), counts["labels"] / len(queries)


def measure(world: World, rule: Rule, forest: DenseForest, beams: tuple[int, ...]) -> dict:
    """Depths of a tree, and at each beam its classifiers and its precision; no times."""
    index, shape = index_of(forest, beams), forest.shapes[0]
    points = []
    for beam in beams:
        nodes, labels = evaluated(forest, world.queries, beam)
        points.append(
            {
                "beam": beam,
                "nodes": round(nodes, 1),
                "labels": round(labels, 1),
                "multiply_adds": round((nodes + labels) * index.dim),
                **world.figures(world.rank(index, str(beam))),
            }
        )
    return {
        "rule": name_of(rule),
        "expected_depth": round(expected_depth(shape, world.counts), 3),
        "deepest": int(shape.depth.max()),
        "nodes": len(shape.first),
        "points": points,
    }


def time_all(
    forests: list[DenseForest], queries: NDArray[np.float32], beams: tuple[int, ...], rounds: int
) -> NDArray[np.float64]:
    """Microseconds (trees, beams, 3): p50, p99, mean in a batch, each the least of all rounds."""
    indexes = [index_of(forest, beams) for forest in forests]
    best = np.full((len(indexes), len(beams), 3), np.inf)
    for _ in range(rounds):
        for place, index in enumerate(indexes):
            for column, beam in enumerate(beams):
                alone = np.percentile(one_by_one_us(index, str(beam), queries), [50, 99])
                started = time.perf_counter()
                index.search(queries, _DEPTH, str(beam))
                together = 1e6 * (time.perf_counter() - started) / len(queries)
                best[place, column] = np.minimum(best[place, column], [*alone, together])
    return best


def name_of(rule: Rule) -> str:
    """The name of a rule in tables."""
    return f"gamma {rule.gamma:g}" if isinstance(rule, MassBalance) else f"lambda {rule.bits:g}"


def at_equal_time(record: dict[str, Any], microseconds: float) -> float:
    """P@1 where the tree's p50 is this; interpolates between beams on the logarithm of time."""
    times = np.maximum.accumulate([point["us_p50"] for point in record["points"]])
    precisions = [point["p_at_1"] for point in record["points"]]
    return float(np.interp(np.log(microseconds), np.log(times), precisions))


def table(report: dict[str, Any], beam: int) -> str:
    """Markdown table: one row for each tree, at one beam."""
    lines = [
        f"{report['run']}: {report['n_labels']:,} labels, leaf {report['leaf']}, arity "
        f"{report['arity']}, beam {beam}, {report['split']} points. Entropy "
        f"{report['entropy']:.2f} bits, Huffman {report['huffman']:.2f}. All labels scored: P@1 "
        f"{report['exact']['p_at_1']}, P@5 {report['exact']['p_at_5']}.",
        "",
        "| tree | D(T) | deepest | nodes met | labels met | multiply-adds | p50 us | p99 us | "
        "us in a batch | P@1 | P@5 | PSP@5 | P@1 at equal time |",
        "|" + "---|" * 13,
    ]
    base = next(p for p in report["trees"][0]["points"] if p["beam"] == beam)
    first_depth = report["trees"][0]["expected_depth"]
    for record in report["trees"]:
        point = next(p for p in record["points"] if p["beam"] == beam)
        saved = 100 * (record["expected_depth"] / first_depth - 1)
        cells = [
            record["rule"],
            f"{record['expected_depth']:.2f} ({saved:+.0f} %)",
            record["deepest"],
            point["nodes"],
            point["labels"],
            f"{point['multiply_adds']:,}",
            f"{point['us_p50']:.0f}",
            f"{point['us_p99']:.0f}",
            f"{point['us_in_batch']:.0f}",
            point["p_at_1"],
            point["p_at_5"],
            point["psp_at_5"],
            f"{at_equal_time(record, base['us_p50']):.2f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw how D(T) and the time change with gamma, and precision against time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "label-trees"
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    trees = [record for record in report["trees"] if record["rule"].startswith("gamma")]
    gammas = [float(record["rule"].split()[1]) for record in trees]
    depths = np.array([record["expected_depth"] for record in trees])
    left.plot(gammas, 100 * (depths / depths[0] - 1), "k-o", label="D(T)")
    for column, beam in enumerate(report["beams"]):
        times = np.array([record["points"][column]["us_p50"] for record in trees])
        left.plot(gammas, 100 * (times / times[0] - 1), "--.", label=f"p50, beam {beam}")
    left.set(xlabel="gamma", ylabel="change against gamma 0, %")
    for record in report["trees"]:
        right.plot(
            [point["us_p50"] for point in record["points"]],
            [point["p_at_1"] for point in record["points"]],
            marker="o",
            markersize=3,
            label=record["rule"],
        )
    right.set(xscale="log", xlabel="microseconds, p50", ylabel=f"{report['split']} P@1, %")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Grow, train, measure and time the trees, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of an exported run")
    parser.add_argument("--gammas", type=float, nargs="*", default=GAMMAS)
    parser.add_argument("--lambdas", type=float, nargs="*", default=LAMBDAS)
    parser.add_argument("--beams", type=int, nargs="+", default=BEAMS)
    parser.add_argument("--beam", type=int, default=20, help="the beam of the table")
    parser.add_argument("--leaf", type=int, default=1)
    parser.add_argument("--arity", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--test", action="store_true", help="score the test split")
    parser.add_argument("--work", type=Path, help="keeps embeddings (default: --out)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    work, beams = args.work or args.out, tuple(args.beams)
    for folder in (work, args.out):
        folder.mkdir(parents=True, exist_ok=True)
    world = of_run(args.run, work, args.test)
    rules: list[Rule] = [*map(MassBalance, args.gammas), *map(EntropySplit, args.lambdas)]
    base = TreeConfig(leaf_size=args.leaf, levels=args.arity.bit_length() - 1, seed=args.seed)
    forests, records = [], []
    bias = world.config.method.logit_bias
    for rule in rules:
        config = replace(base, rule=rule)
        forests.append(train_forest(world.vectors, bias, world.points, world.labels, config))
        records.append(measure(world, rule, forests[-1], beams))
        print(records[-1], flush=True)
    times = time_all(forests, world.queries, beams, args.rounds)
    for record, by_beam in zip(records, times, strict=True):
        for point, times_us in zip(record["points"], by_beam.round(1).tolist(), strict=True):
            point |= dict(zip(("us_p50", "us_p99", "us_in_batch"), times_us, strict=True))
    report = {
        "run": world.config.name,
        "n_labels": len(world.vectors),
        "split": "test" if args.test else "validation",
        "leaf": args.leaf,
        "arity": args.arity,
        "beams": list(beams),
        "entropy": entropy(world.counts),
        "huffman": huffman_depth(world.counts),
        "machine": machine(),
        "exact": world.figures(world.rank(index_of(forests[0], beams), "exact")),
        "trees": records,
    }
    name = args.out / f"label-trees-{world.config.name}-leaf{args.leaf}"
    name.with_suffix(".json").write_text(json.dumps(report, indent=1))
    name.with_suffix(".md").write_text(table(report, args.beam))
    draw(report, name.with_suffix(".svg"))
    print(table(report, args.beam))


if __name__ == "__main__":
    main()
