"""The options of `python -m models all --data`, which stand for a configuration (docs/data.md)."""

import argparse
from pathlib import Path
from typing import Final

TABLE_OPTIONS: Final = {
    "text": "column of the texts",
    "content": "column of a second, longer text",
    "labels": "column of the labels",
    "separator": "what separates the labels of one row",
    "weight": "column of the weight of a label",
    "id": "column of the ids of texts",
    "time": "column of a time: the newest rows are held out",
    "label-table": "file with ids, texts and metadata of the labels",
}


def add_options(command: argparse.ArgumentParser) -> None:
    """Add them to the command; nothing heavy is imported."""
    add = command.add_argument
    add("--data", type=Path, metavar="PATH", help="a table or a folder of tables; no --config then")
    add("--dry-run", action="store_true", help="stop after the plan of --data")
    for name, what in TABLE_OPTIONS.items():
        add(f"--{name}", default="", metavar="NAME", help=what)
    add("--test-share", type=float, metavar="SHARE", help="of points held out; default 0.1")
