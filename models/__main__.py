"""python -m models: the offline job, as a whole or stage by stage.

It parses the command line and calls models.stages. Slow imports wait until a stage is named.
"""

from service.interrupt import end_on_signal

if __name__ == "__main__":
    # Before the imports, which are slow. SIGTERM, which stops a container, counts as Ctrl-C does.
    end_on_signal("interrupted: the same command goes on from the last checkpoint")

import argparse
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from models.command_line import (
    ALL,
    COMPARE,
    DEBIAN,
    EXPORT_VECTORS,
    FOLD,
    GATHER,
    PARALLEL,
    PREDICT,
    PREPARE,
    PULL,
    PUSH,
    SIGN,
    TUNE,
    make_parser,
)
from models.compare.peers.registry import choose_peers

if TYPE_CHECKING:
    from service.bundle.manifest import QualityInfo

TRAIN = "pip install 'astrolabe[train]'"


def main(argv: list[str] | None = None) -> int:
    """Run one stage; returns the exit code: 0, or 1 after an error, which it prints."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__)
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
