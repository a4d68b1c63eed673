"""python -m models: the offline job, as a whole or stage by stage.

It parses the command line and calls models.stages. Slow imports wait until a stage is named.
"""

from service.interrupt import end_on_signal

if __name__ == "__main__":
    # Before the imports, which are slow. SIGTERM, which stops a container, counts as Ctrl-C does.
    end_on_signal("interrupted: the same command goes on from the last checkpoint")

import argparse
import json
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.compare.peers.registry import NONE, PEERS, choose_peers
from models.plan.options import add_options

if TYPE_CHECKING:
    from service.bundle.manifest import QualityInfo

STAGES = {
    "prepare": "read the data, and print a report on it and on the validation split",
    "train": "train the encoder and the label vectors, from the checkpoint if there is one",
    "export": "export the encoder to ONNX in each precision, and compare it with torch",
    "index": "build the label index, measure its operating points, fit the calibration",
    "release": "score the test split through the serving code and seal the bundle",
    "all": "run every stage that is not done yet",
    "evaluate": "score a sealed bundle on a split of its data",
}
PREPARE, DEBIAN = "prepare", "debian"
ALL = "all"
COMPARE = "compare"
TUNE = "tune"
FOLD = "fold"
SIGN = "sign"
GATHER = "gather"
PREDICT = "predict"
EXPORT_VECTORS = "export-vectors"
TRAIN = "pip install 'astrolabe[train]'"
PUSH, PULL = "push", "pull"
PARALLEL = "train"
"""The one stage that torchrun may start in several processes."""


def main(argv: list[str] | None = None) -> int:
    """Run one stage; returns the exit code: 0, or 1 after an error, which it prints."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser()
    args = parser.parse_args(argv)
    if args.stage == PREPARE and (args.config is None) == (args.source is None):
        parser.error(f"{PREPARE} takes either --config or a SOURCE such as {DEBIAN}")
    if args.stage == ALL and (args.config is None) == (args.data is None):
        parser.error(f"{ALL} takes either --config or --data")
    if args.stage == TUNE and args.config is args.run is args.check is None:
        parser.error(f"{TUNE} takes --config or --run; only --check needs neither")
    args.command = f"python -m models {shlex.join(argv)}"
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    logging.getLogger("models").setLevel(logging.INFO)  # libraries log errors only
    from models.errors import ModelsError
    from service.errors import AstrolabeError

    try:
        _run(args)
    except (ModelsError, AstrolabeError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    except OSError as exc:
        print(f"error: {exc.filename or 'disk'}: {exc.strerror or exc}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__)
    commands = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, what in STAGES.items():
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument(
            "--config", type=Path, required=name not in (PREPARE, ALL), help="a TOML file"
        )
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="override a setting, such as train.epochs=3 (may be repeated)",
        )
        command.add_argument(
            "--var", type=Path, default=Path("var"), help="folder of runs and bundles"
        )
        if name == PREPARE:
            _add_sources(command)
        if name == ALL:
            add_options(command)
        if name == "evaluate":
            command.add_argument("--bundle", type=Path, help="default: the newest of this name")
            command.add_argument("--split", default="test", choices=["test", "validation", "train"])
    _add_compare(commands)
    _add_tune(commands)
    _add_fold(commands)
    _add_sign(commands)
    _add_gather(commands)
    _add_bulk(commands)
    _add_push_and_pull(commands)
    return parser


def _add_sources(prepare: argparse.ArgumentParser) -> None:
    sources = prepare.add_subparsers(
        title="sources of a new data set", dest="source", metavar="SOURCE"
    )
    what = "make a data set of Debian's or Ubuntu's packages, from apt's lists"
    add = sources.add_parser(DEBIAN, help=what, description=what).add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="an empty or a new folder")
    add("--limit-points", type=_at_least_one, metavar="N", help="a sample of N points, for a trial")


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above zero")
    return int(text)


def _add_compare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    what = "measure bundles, configurations and peers on the same data: one table, two charts"
    add = commands.add_parser(COMPARE, help=what, description=what).add_argument
    add("--data", type=Path, help="a folder with a data set; default: the first config's")
    add(
        "--fields",
        choices=["title", "title+content", "title|content"],
        help="default: the first config's",
    )
    add("--own-item", action="store_true", help="never answer a point with itself (data.own_item)")
    add("--config", type=Path, action="append", default=[], help="TOML; trained if need be; repeat")
    add("--bundle", type=Path, action="append", default=[], help="a sealed bundle; may be repeated")
    add("--peers", default=",".join(PEERS), help=f"some of {', '.join(PEERS)}; or {NONE}")
    add("--propensity", type=float, nargs=2, metavar=("A", "B"), help="default: 0.55 1.5")
    add("--var", type=Path, default=Path("var"), help="folder of runs and bundles")
    add("--out", type=Path, metavar="FOLDER", help="default: compare/NAME under --var")
    add("--into", type=Path, metavar="PAGE", help="a Markdown page with markers for the table")
    add("--name", help="name of the markers; default: the data's name")
    add("--again", action="store_true", help="repeat measurements that are on record")


def _add_tune(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    what = "search for an index within limits of latency, quality and size; seal the run with it"
    command = commands.add_parser(TUNE, help=what, description=what)
    run = command.add_mutually_exclusive_group()
    run.add_argument("--config", type=Path, help="a TOML file; its run is trained")
    run.add_argument(
        "--run", type=Path, metavar="FOLDER", help="a trained run's folder, instead of --config"
    )
    add = command.add_argument
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    add("--var", type=Path, default=Path("var"), help="folder of runs and bundles")
    add(
        "--p99-us",
        type=_above_zero,
        metavar="US",
        help="microseconds a search, 99th percentile, at most",
    )
    add("--recall", type=_share, metavar="SHARE", help="recall@10 against exact search, at least")
    add(
        "--p-at-1-loss",
        type=float,
        metavar="POINTS",
        help="points of P@1 below exact search, at most",
    )
    add("--memory-mb", type=_above_zero, metavar="MB", help="megabytes of index files, at most")
    add("--kinds", metavar="A,B", help="kinds of index to try; default: all that fit the run")
    add("--again", action="store_true", help="repeat measurements that are on record")
    add("--check", type=Path, metavar="BUNDLE", help="measure a sealed bundle's points again")


def _add_fold(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    what = "fold changes to a catalogue into a new bundle, without training"
    add = commands.add_parser(FOLD, help=what, description=what).add_argument
    add("--bundle", type=Path, required=True, help="a sealed bundle, or a folder of bundles")
    add("--state", required=True, metavar="DIR", help="the service's state folder, or database URL")
    add("--out", type=Path, metavar="FOLDER", help="default: the folder that holds the bundle")
    add("--data", type=Path, metavar="FOLDER", help="its data; default: data.path of its config")


def _add_sign(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    what = "sign a sealed bundle, so that a service which trusts the key takes it"
    add = commands.add_parser(SIGN, help=what, description=what).add_argument
    add("--bundle", type=Path, required=True, help="a sealed bundle, or a folder of bundles")
    add("--key", type=Path, required=True, metavar="PEM", help="a file with an Ed25519 private key")


def _add_gather(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    what = "make the next data set from feedback and the last data set"
    add = commands.add_parser(GATHER, help=what, description=what).add_argument
    add("--feedback", type=Path, required=True, metavar="FOLDER", help="the service's feedback_dir")
    add("--data", type=Path, required=True, metavar="FOLDER", help="the last data set")
    add("--out", type=Path, required=True, metavar="FOLDER", help="an empty or a new folder")
    add("--fields", choices=("title", "title+content", "title|content"), default="title")
    for kind, weight in (("clicked", 0.5), ("accepted", 1.0), ("rejected", -1.0)):
        add(f"--{kind}", type=float, default=weight, metavar="WEIGHT", help=f"default: {weight}")
    add("--min-weight", type=_above_zero, default=0.5, help="of a text and a label; default: 0.5")
    add("--position-bias", default="1.0", metavar="POWER|estimate", help="default: 1 / position")
    add("--clip", type=_above_zero, default=10.0, help="largest inverse propensity; default: 10")
    add("--test-share", type=_share, default=0.1, help="newest new texts to test; default: 0.1")
    add("--old-share", type=_share, default=1.0, help="old training points to keep; default: 1")


def _add_bulk(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    what = "answer files of texts: a Parquet file for each, and a summary"
    add = commands.add_parser(PREDICT, help=what, description=what).add_argument
    add("--bundle", type=Path, required=True, help="a sealed bundle, or a folder of bundles")
    add("--in", dest="inputs", nargs="+", required=True, metavar="FILES", help="files or folders")
    add("--out", type=Path, required=True, metavar="FOLDER", help="gets the answers")
    add("--text", metavar="COLUMN", help="column of the texts; default: text, query or title")
    add("--id", metavar="COLUMN", help="column of the ids; default: id or uid, else row numbers")
    add("--k", type=_at_least_one, help="labels for each text; default: the bundle's")
    add("--effort", help="an effort of the bundle; default: the bundle's")
    add("--where", type=_json_object, metavar="JSON", help="a filter as in POST /v1/recommend")
    add("--min-score", type=float, help="leave out labels with a lower score")
    add("--workers", type=_at_least_one, help="processes that score; default: one for each core")
    what = "write the label vectors as Parquet, for a vector engine"
    add = commands.add_parser(EXPORT_VECTORS, help=what, description=what).add_argument
    add("--bundle", type=Path, required=True, help="a sealed bundle, or a folder of bundles")
    add("--out", type=Path, required=True, metavar="FILE_OR_FOLDER", help="a .parquet file")


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"it is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('it is no JSON object, such as {"shelf": 3}')
    return value


def _add_push_and_pull(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    what = "push a sealed bundle to an object store, and let its pointer name it"
    add = commands.add_parser(PUSH, help=what, description=what).add_argument
    add("bundle", type=Path, help="a sealed bundle, or a folder of bundles")
    add("url", help="where a folder of bundles lies, such as s3://BUCKET/bundles")
    what = "fetch the bundle that a URL names into a folder of bundles"
    add = commands.add_parser(PULL, help=what, description=what).add_argument
    add("url", help="a bundle, or a folder of bundles, such as s3://BUCKET/bundles")
    add("folder", type=Path, help="a folder of bundles, such as var/bundles/NAME")


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above zero")
    return value


def _share(text: str) -> float:
    value = _above_zero(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share, such as 0.98")
    return value


def _run(args: argparse.Namespace) -> None:
    _refuse_processes(args.stage)
    if args.stage == PREPARE and args.source == DEBIAN:
        _make_debian(args)
    else:
        commands = {
            COMPARE: _compare,
            TUNE: _tune,
            FOLD: _fold,
            SIGN: _sign,
            PREDICT: _predict,
            EXPORT_VECTORS: _export_vectors,
            GATHER: _gather,
            PUSH: _push,
            PULL: _pull,
        }
        commands.get(args.stage, _run_stage)(args)


def _run_stage(args: argparse.Namespace) -> None:
    from models import stages
    from models.data.prepare import load_config_with_data

    if args.stage == ALL and args.config is None:
        from models.plan.command import plan_of
        from models.stages import run_all

        plan = plan_of(args)
        if not args.dry_run:
            print(_table(run_all(plan.config, args.var)))
        return
    config = load_config_with_data(args.config, args.set)
    if args.stage == ALL:
        print(_table(stages.run_all(config, args.var)))
    elif args.stage == "evaluate":
        bundle = args.bundle or args.var / "bundles" / config.name
        print(_figures(stages.run_evaluate(config, bundle, args.split)))
    else:
        run_stage = getattr(stages, f"run_{args.stage}")
        result = run_stage(stages.TrainingJob.open(config, args.var))
        if result is not None:
            print(_table(result) if args.stage == "release" else result)


def _refuse_processes(stage: str) -> None:
    from models.errors import ConfigError

    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1" and stage != PARALLEL:
        raise ConfigError(
            f"torchrun started {processes} processes of {stage}, which is for one: run "
            f"{PARALLEL} with torchrun, then {stage} without"
        )


def _make_debian(args: argparse.Namespace) -> None:
    from models.data.dataset import report_text
    from models.data.debian import make_dataset

    print(report_text(make_dataset(args.out, args.limit_points), "title+content"))


def _compare(args: argparse.Namespace) -> None:
    from models.compare.compare import Request, compare
    from models.compare.table import as_markdown

    request = Request(
        data=args.data,
        fields=args.fields,
        own_item=args.own_item,
        propensity=tuple(args.propensity) if args.propensity else None,
        configs=tuple(args.config),
        bundles=tuple(args.bundle),
        peers=choose_peers(args.peers),
        var=args.var,
        out=args.out,
        into=args.into,
        name=args.name,
        again=args.again,
        command=args.command,
    )
    print(as_markdown(compare(request)))


def _fold(args: argparse.Namespace) -> None:
    from models.seal.fold import fold

    print(_table(fold(args.bundle, args.state, args.out, args.data)))


def _sign(args: argparse.Namespace) -> None:
    from models.seal.signing import sign_bundle

    manifest, key_ids = sign_bundle(args.bundle, args.key)
    print(f"{manifest.name}  {manifest.bundle_id[:12]}  signed by {', '.join(key_ids)}")


def _gather(args: argparse.Namespace) -> None:
    from models.errors import ConfigError
    from models.extras import need

    need("pyarrow", TRAIN)
    from models.gather.events import Weighing
    from models.gather.gather import Gathering, gather

    try:
        power = None if args.position_bias == "estimate" else float(args.position_bias)
    except ValueError:
        raise ConfigError(
            f"--position-bias is {args.position_bias}: give a number such as 1, or `estimate`"
        ) from None
    weights = {"shown": 0.0} | {kind: getattr(args, kind) for kind in ("clicked", "accepted")}
    weighing = Weighing(weights | {"rejected": args.rejected}, power, args.clip)
    counts = gather(
        Gathering(
            *(args.feedback, args.data, args.out, args.fields, weighing),
            min_weight=args.min_weight,
            test_share=args.test_share,
            old_share=args.old_share,
        )
    )
    print("\n".join(f"{count:>12,}  {name}" for name, count in counts.items()))


def _predict(args: argparse.Namespace) -> None:
    from models.extras import need

    need("pyarrow", TRAIN)
    from models.bulk.local import SUMMARY_FILE, Arguments, predict

    arguments = Arguments(args.text, args.id, args.k, args.effort, args.where, args.min_score)
    workers = args.workers or len(os.sched_getaffinity(0))
    summary = predict(args.bundle, args.inputs, args.out, arguments, workers)
    print(
        f"{summary['rows']} texts, {summary['failed_rows']} without an answer, "
        f"{summary['rows_per_second']} a second: {args.out / SUMMARY_FILE}"
    )


def _export_vectors(args: argparse.Namespace) -> None:
    from models.extras import need

    need("pyarrow", TRAIN)
    from models.bulk.vectors import export_vectors

    print(export_vectors(args.bundle, args.out))


def _push(args: argparse.Namespace) -> None:
    from models.seal.push import push

    bundle_id = push(args.bundle, args.url.rstrip("/"), print)
    print(f"{args.url} serves {bundle_id}")


def _pull(args: argparse.Namespace) -> None:
    from models.seal.push import pull

    print(pull(args.url.rstrip("/"), args.folder))


def _tune(args: argparse.Namespace) -> None:
    """Tune or check. The table comes before the error, because it shows what was measured."""
    from models import stages
    from models.data.prepare import load_config_with_data
    from models.errors import TuneError
    from models.tune.goal import Goal
    from models.tune.report import as_text
    from models.tune.tuning import Request

    goal = Goal(args.p99_us, args.recall, args.p_at_1_loss, args.memory_mb)
    if args.check is not None and args.config is None and args.run is None:
        job = stages.job_of_bundle(args.check, args.var)
    elif args.run is not None:
        job = stages.TrainingJob.of_run(args.run, args.var)
    else:
        job = stages.TrainingJob.open(load_config_with_data(args.config, args.set), args.var)
    if args.check is not None:
        checked = stages.run_check(job, args.check, None if goal == Goal() else goal)
        print(checked.text)
        if checked.broken:
            raise TuneError(checked.broken)
        return
    kinds = tuple(args.kinds.split(",")) if args.kinds else ()
    report = stages.run_tune(job, Request(goal, kinds, args.again, args.command))
    print(as_text(report))
    if report.chosen is None:
        raise TuneError(report.verdict)


def _figures(quality: "QualityInfo") -> str:
    head = f"{quality.split} split, {quality.n_queries:,} queries, effort {quality.effort}, percent"
    rows = []
    for name, value in quality.metrics.items():
        error = f" +- {quality.errors[name]:4.2f}" if name in quality.errors else ""
        unseen = f"{quality.unseen[name]:8.2f}" if name in quality.unseen else ""
        rows.append(f"  {name:<16}{value:8.2f}{error:<8}{unseen}")
    if quality.unseen and quality.n_seen:
        head += f"; then without the {quality.n_seen:,} whose series has a training point"
    return "\n".join([head, *rows])


def _table(bundle: Path) -> str:
    from service.bundle.verify import read_manifest

    manifest = read_manifest(bundle)
    size_mb = sum(entry.bytes for entry in manifest.files.values()) / 1e6
    lines = [f"{manifest.name}  {manifest.bundle_id[:12]}  {size_mb:.0f} MB", ""]
    if manifest.quality is not None:
        figures = manifest.quality.metrics
        names = ("p1", "p3", "p5", "ndcg5", "psp1", "psp3", "psp5", "r10", "r100")
        lines += [
            f"{manifest.quality.split} split, {manifest.quality.n_queries:,} queries, percent",
            "".join(f"{name:>8}" for name in names),
            "".join(f"{figures[name]:8.2f}" for name in names),
            "",
        ]
    lines.append(f"{'effort':<10}{'recall@10':>10}{'P@1':>8}{'P@5':>8}{'p50 us':>9}{'p99 us':>9}")
    lines += [
        f"{point.name:<10}{point.recall_at_10:10.4f}{point.p_at_1:8.2f}{point.p_at_5:8.2f}"
        f"{point.search_us_p50:9.0f}{point.search_us_p99:9.0f}"
        for point in manifest.operating_points
    ]
    calibration = manifest.calibration
    if calibration.ece_after is not None:
        lines += ["", f"calibration error {calibration.ece_before} -> {calibration.ece_after}"]
    if calibration.first_after is not None:
        change = f"{calibration.first_before} -> {calibration.first_after}"
        lines.append(f"of the first label alone {change}")
    if manifest.rerank is not None:
        trees = manifest.rerank.calibration
        errors = f"{trees.ece_after}, of the first label alone {trees.first_after}"
        lines.append(f"operating points are without trees; calibration error with them {errors}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
