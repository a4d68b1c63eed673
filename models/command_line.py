"""The command line of `python -m models`: its stages, and the options of each."""

import argparse
import json
from pathlib import Path
from typing import Any

from models.compare.peers.registry import NONE, PEERS
from models.plan.options import add_options

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
PUSH, PULL = "push", "pull"
PARALLEL = "train"
"""The one stage that torchrun may start in several processes."""


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser of all commands, with this description."""
    parser = argparse.ArgumentParser(prog="python -m models", description=description)
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
    add("--text", metavar="COLUMN", help="column of the texts; default: by usual names")
    add(
        "--id",
        metavar="COLUMN",
        help="column of the ids; default: as for texts, or row numbers",
    )
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
