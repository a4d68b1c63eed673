"""Which label index is best at which size? Precision and recall against microseconds.

    python -m tests.bench.index_kinds --run var/runs/gutenberg-bag/<digest> \\
        --elias var/runs/gutenberg-elias/<digest> --sizes 100000 1000000 \\
        --work /big/disk --out docs/figures

`--sizes` makes up label vectors and queries. `--run` adds the label vectors of a trained run, with
its validation queries. `--elias` adds the learned graph of another run over the same labels; its
own encoder embeds the queries, and its recall is against its own exhaustive search. Searches are
one query at a time on one thread, timed as a tuning times them.

Writes index-kinds.json, .md and .svg. If a kind was built in several ways, the drawing shows the
best of them. The script does not repeat a measurement that index-kinds.json holds, so it can
resume; delete an entry there to measure this build anew.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.config import IndexConfig
from models.data.prepare import Corpus, open_configured, split
from models.encoders.build import embed
from models.export.export_onnx import encode_with
from models.export.precisions import Exported
from models.index.efforts import TIMED_QUERIES, exact_index, machine, named
from models.index.kind import Material
from models.index.registry import KINDS, build_label_index
from models.quality.metrics import precision_at_k
from models.runs import encoder_file, read_run
from models.trained import load_model
from models.tune.builds import variants
from models.tune.candidate import Build
from models.tune.timing import time_search
from service.bundle.manifest import EXACT, IndexInfo
from service.core.encoding.encoder import OnnxEncoder
from service.core.index.opening import open_label_index
from service.core.index.protocol import LabelIndex

DIM = 128
N_QUERIES = 1000
GOOD = 0.95
"""The recall@10 at which the table compares the kinds."""
_STEP = 0.01
"""An entry of a grid is timed if its recall is this much above that of all cheaper ones. From 0.995
on any rise will do."""
_WALK_QUERIES = 300
"""Queries that decide which entries of a grid are timed, which takes all queries."""
_SCAN_QUERIES = 100
"""Queries that time an exhaustive scan, which is slow and steady."""
_MEMORY_SCRIPT = """
import sys
from pathlib import Path
from service.bundle.manifest import IndexInfo
from service.core.index.opening import open_label_index
def kilobytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
before = kilobytes()
index = open_label_index(
    Path(sys.argv[1]), IndexInfo.model_validate_json(sys.argv[2]), int(sys.argv[3]), {"exact": {}}
)
print(kilobytes()["RssAnon"] - before["RssAnon"])
"""


@dataclass(frozen=True)
class World:
    """Labels, queries (n, dim), relevant labels, and the exact first hundred rows (n, 100)."""

    name: str
    material: Material
    queries: NDArray[np.float32]
    truth: csr_array
    exact: NDArray[np.int64]

    @classmethod
    def of(cls, name, material, queries, truth) -> "World":
        exact = exact_index(material.vectors).search(queries, 100, EXACT).rows
        return cls(name, material, queries, truth, exact)


def made_up(n_labels: int, seed: int = 1) -> World:
    """A world of made-up labels.

    A label is a member of a family of some 16 labels, and a family mixes three of 256 topics. A
    query lies near two labels, which are drawn by Zipf frequencies and are the relevant ones. The
    spreads are chosen so that P@1 and the recall of inverted lists rise about as they do over the
    label vectors of a model trained on a library catalogue.
    """
    rng = np.random.default_rng(seed)
    n_families, n_topics = max(1, n_labels // 16), 256
    topics = rng.standard_normal((n_topics, DIM), dtype=np.float32)
    shares = np.cumsum(_zipf(n_topics, 0.5))
    families = 0.3 * rng.standard_normal((n_families, DIM), dtype=np.float32)
    for _ in range(3):
        weights = rng.uniform(0.3, 1, (n_families, 1)).astype(np.float32)
        families += weights * topics[np.searchsorted(shares, rng.random(n_families))]
    vectors = families[rng.integers(n_families, size=n_labels)]
    vectors += 0.6 * rng.standard_normal((n_labels, DIM), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    by_frequency = rng.permutation(n_labels)
    ranks = np.searchsorted(np.cumsum(_zipf(n_labels, 0.8)), rng.random((N_QUERIES, 2)))
    relevant = by_frequency[np.minimum(ranks, n_labels - 1)]  # (n, 2)
    noise = 1.5 / np.sqrt(DIM) * rng.standard_normal((N_QUERIES, DIM), dtype=np.float32)
    queries = vectors[relevant[:, 0]] + 0.6 * vectors[relevant[:, 1]] + noise.astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    common = rng.standard_normal(DIM, dtype=np.float32)
    vectors *= 12 * np.exp(0.1 * rng.standard_normal((n_labels, 1), dtype=np.float32))
    vectors -= 3 * common / np.linalg.norm(common)
    rows = np.repeat(np.arange(N_QUERIES), 2)
    entries = (np.ones(relevant.size, np.float32), (rows, relevant.ravel()))
    truth = csr_array(entries, shape=(N_QUERIES, n_labels))
    material = Material(vectors, 0.0, vectors[:0], csr_array((0, n_labels)))
    return World.of(f"{n_labels:,} labels, made up", material, queries, truth)


def _zipf(n: int, exponent: float) -> NDArray[np.float64]:
    weights = np.arange(1, n + 1) ** -exponent
    return weights / weights.sum()


def of_run(folder: Path) -> World:
    """The label vectors of a trained run and its validation queries, embedded as the service does.

    The trained encoder itself embeds the queries of ELIAS, so that such a run needs no export.
    """
    run = read_run(folder)
    dataset = open_configured(run.config)
    parts = split(run.config, dataset)
    texts = Corpus(run, dataset, parts)
    model = load_model(run)
    servable = model.servable()
    if servable.graph is None:
        encoder = OnnxEncoder(run.folder / encoder_file(Exported.of(run).served), "cpu")
        points, queries = (encode_with(encoder, of) for of in (texts.train, texts.validation))
    else:
        queries = embed(model.encoder, texts.validation)
        points = queries[:0]
    train = dataset.train.labels
    labels = csr_array(train[parts.train_rows[: len(points)]] > 0, dtype=np.float32)
    material = Material(
        servable.label_vectors, run.config.method.logit_bias, points, labels, servable.graph
    )
    name = f"{labels.shape[1]:,} labels, {run.config.name}"
    truth = train[parts.validation_rows][:N_QUERIES]
    return World.of(name, material, queries[:N_QUERIES], truth)


def measure(world: World, config: IndexConfig, folder: Path) -> dict:
    """Build one kind in `folder` and measure it along its grid."""
    n_labels, dim = world.material.vectors.shape
    started = time.process_time()
    info = build_label_index(world.material, config, folder)
    seconds = time.process_time() - started
    grid = KINDS[config.kind].grid(config, n_labels)
    index = open_label_index(folder, info, dim, named(grid) | {EXACT: {}})
    if info.metric != "inner_product":  # by its own scores other labels are the exact ones
        world = replace(world, exact=index.search(world.queries, 100, EXACT).rows)
    points = [
        _point(index, effort, params, world)
        for effort, params in [*_worth_timing(index, grid, world), (EXACT, {})]
    ]
    return {
        "kind": config.kind,
        "n_labels": n_labels,
        "params": info.params,
        "build_s": round(seconds, 1),
        "bytes": sum((folder / name).stat().st_size for name in info.files),
        "private_bytes": _private_bytes(folder, info, dim),
        "machine": machine(),
        "points": points,
    }


def _worth_timing(index: LabelIndex, grid: list, world: World) -> Iterator[tuple[str, dict]]:
    """Entries of the grid whose recall is a step above all cheaper ones; ends near recall 1."""
    best, queries, exact = 0.0, world.queries[:_WALK_QUERIES], world.exact[:_WALK_QUERIES, :10]
    for effort, params in named(grid).items():
        recall = _recall(index.search(queries, 10, effort).rows, exact)
        if recall >= min(best + _STEP, max(best + 1e-9, 0.995)):
            best = recall
            yield effort, dict(params)
        if best >= 0.999:
            return


def _point(index: LabelIndex, effort: str, params: dict, world: World) -> dict:
    rows = index.search(world.queries, 10, effort).rows
    deep = index.search(world.queries, 100, effort).rows
    times = time_search(
        lambda queries: index.search(queries, 10, effort),
        world.queries[: TIMED_QUERIES if params else _SCAN_QUERIES],
        np.random.default_rng(1),
        carefully=False,
    )
    return {
        "params": params,
        "recall_at_10": round(_recall(rows, world.exact[:, :10]), 4),
        "recall_at_100": round(_recall(deep, world.exact), 4),
        "p_at_1": round(100 * precision_at_k(rows, world.truth, 1), 2),
        "us_p50": times.p50,
        "us_p99": times.p99,
    }


def _recall(rows: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    shared = [np.isin(a, b).mean() for a, b in zip(exact, rows, strict=True)]
    return float(np.mean(shared))


def _private_bytes(folder: Path, info: IndexInfo, dim: int) -> int:
    """Private memory that a process needs to open the index; the mapped file does not count."""
    arguments = [str(folder), info.model_dump_json(), str(dim)]
    command = [sys.executable, "-c", _MEMORY_SCRIPT, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return 1024 * max(0, int(run.stdout))


def cheapest_good(record: dict) -> dict | None:
    """The fastest point with recall@10 of at least GOOD; None if no point has it."""
    good = [point for point in record["points"] if point["recall_at_10"] >= GOOD]
    return min(good, key=lambda point: point["us_p50"], default=None)


def table(records: dict[str, dict[str, dict]]) -> str:
    """Markdown table: one row for each size and build, at its cheapest good point."""
    rows = [
        f"| labels | kind | recall@10 >= {GOOD} by | recall@10 | @100 | P@1 | us p50 | p99 "
        "| build s | MB on disk | MB private |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for size, kinds in records.items():
        for kind, record in kinds.items():
            point = cheapest_good(record)
            figures = ["-"] * 6
            if point is not None:
                by = ", ".join(f"{key} {value}" for key, value in point["params"].items())
                keys = ("recall_at_10", "recall_at_100", "p_at_1", "us_p50", "us_p99")
                figures = [by or "a scan", *(str(point[key]) for key in keys)]
            sizes = [record["build_s"], record["bytes"] / 1e6, record["private_bytes"] / 1e6]
            cells = [size, kind, *figures, *(f"{value:.1f}" for value in sizes)]
            rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def draw(records: dict[str, dict[str, dict]], path: Path) -> None:
    """One column for each size: recall@10, recall@100 and P@1 over microseconds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "index-kinds"
    figures = {"recall_at_10": "recall@10", "recall_at_100": "recall@100", "p_at_1": "P@1, %"}
    grid = plt.subplots(
        3, len(records), figsize=(1 + 4 * len(records), 9), squeeze=False, sharex="col"
    )
    figure, axes = grid
    colours = dict(zip(KINDS, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    for column, (size, kinds) in enumerate(records.items()):
        for row, (key, title) in enumerate(figures.items()):
            axis = axes[row, column]
            for kind in dict.fromkeys(record["kind"] for record in kinds.values()):
                points = _worth_drawing([r for r in kinds.values() if r["kind"] == kind])
                heights = [point[key] for point in points]
                style = {"color": colours[kind], "markersize": 3}
                axis.plot([p["us_p50"] for p in points], heights, "o-", label=kind, **style)
                axis.plot([p["us_p99"] for p in points], heights, ":", alpha=0.6, **style)
            axis.set_xscale("log")
            axis.grid(alpha=0.3)
            axis.set_ylabel(title)
        axes[0, column].set_title(size)
        axes[2, column].set_xlabel("microseconds of one query, one thread (dotted: p99)")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _worth_drawing(records: list[dict]) -> list[dict]:
    """Points of a kind, fastest first; of several builds only those that raise the recall."""
    points = [point for record in records for point in record["points"]]
    points.sort(key=lambda point: point["us_p50"])
    if len(records) == 1:
        return points
    best = [max(p["recall_at_10"] for p in points[:n]) for n in range(1, len(points))]
    return points[:1] + [
        point
        for point, before in zip(points[1:], best, strict=True)
        if point["recall_at_10"] > before
    ]


def _fitting(material: Material, args: argparse.Namespace) -> Iterator[IndexConfig]:
    """The builds of `--kinds` for this material: a learned graph if it has one, else all others."""
    for name in args.kinds:
        kind, has_graph = KINDS[name], material.graph is not None
        if (name == "learned-graph") != has_graph or (
            kind.wants_points and not len(material.points)
        ):
            continue
        config = IndexConfig(kind=name, ef_construction=args.ef_construction)
        yield from variants(config, len(material.vectors)) if args.variants else [config]


def main() -> None:
    """Measure the builds that are missing, then write index-kinds.json, .md and .svg."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="folder of a trained and exported run")
    parser.add_argument("--sizes", type=int, nargs="*", default=[])
    parser.add_argument("--elias", type=Path, help="a trained run of ELIAS, for --run's panel")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--ef-construction", type=int, default=IndexConfig().ef_construction)
    parser.add_argument(
        "--variants", action="store_true", help="all that a tuning builds of each kind"
    )
    parser.add_argument("--work", type=Path, help="where indexes are built (a temporary folder)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    for folder in filter(None, (args.out, args.work)):
        folder.mkdir(parents=True, exist_ok=True)
    faiss.omp_set_num_threads(1)
    records_file = args.out / "index-kinds.json"
    records = json.loads(records_file.read_text()) if records_file.is_file() else {}
    worlds = [lambda folder=folder: of_run(folder) for folder in (args.run, args.elias) if folder]
    worlds += [lambda n=n: made_up(n) for n in args.sizes]
    panel = ""
    for make in worlds:
        world = make()
        # ELIAS has other label vectors of the same labels, so its panel is that of --run.
        panel = panel if panel and world.material.graph else world.name
        records_by_build = records.setdefault(panel, {})
        for config in _fitting(world.material, args):
            build = str(Build.of(config.kind, KINDS[config.kind].params(config)))
            if build in records_by_build:
                continue
            with tempfile.TemporaryDirectory(dir=args.work) as folder:
                records_by_build[build] = measure(world, config, Path(folder))
            records_file.write_text(json.dumps(records, indent=1))
            print(panel, build, cheapest_good(records_by_build[build]), flush=True)
    (args.out / "index-kinds.md").write_text(table(records))
    draw(records, args.out / "index-kinds.svg")
    print(table(records))


if __name__ == "__main__":
    main()
