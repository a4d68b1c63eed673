"""A plan: the facts, the choices, and the configuration that follows, as TOML with its reasons."""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from models.config import Config, TableConfig, apply_override, config_sentence
from models.data.dataset import Dataset
from models.data.formats import open_dataset
from models.data.prepare import split
from models.data.tables.files import has_own_layout
from models.data.tables.table import TableReport, read_table
from models.errors import ConfigError, DataError
from models.plan.choices import (
    LEAST_POINTS,
    SOURCE,
    Choice,
    choose,
    expected_bundle,
    expected_memory,
    expected_seconds,
)
from models.plan.facts import Facts, facts_of
from service.atomic import write_text


@dataclass(frozen=True, slots=True)
class Plan:
    """What a training will do. `report` is None for data in this project's own layout."""

    config: Config
    facts: Facts
    choices: list[Choice]
    report: TableReport | None

    def toml(self) -> str:
        """The configuration, each chosen key with its reason; `load_config` reads it."""
        lines = [
            "# Chosen for this data by `python -m models all --data`. Change what you like and run",
            "# `python -m models all --config THIS_FILE`; docs/training.md explains every key.",
            f"name = {_value(self.config.name)}",
            "",
        ]
        for section, entries in self._sections().items():
            lines.append(f"[{section}]")
            for key, value, reason in entries:
                lines.append(f"{key} = {_value(value)}" + (f"  # {reason}" if reason else ""))
            lines.append("")
        return "\n".join(lines)

    def write(self, var: Path) -> Path:
        """Write the configuration beside the runs that it will have; returns the file."""
        folder = var / "runs" / self.config.name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.config.name}.toml"
        write_text(path, self.toml())
        return path

    def text(self) -> str:
        """The plan for a terminal."""
        facts, config = self.facts, self.config
        rows = [*self._read(), *_about(facts)]
        out = ["What was read", *_aligned(rows), "", "What was chosen"]
        out += _aligned([(c.key, f"{_value(c.value)}  {c.reason}") for c in self.choices])
        epochs = config.train.epochs + config.pretrain.epochs
        minutes = max(1, round(expected_seconds(facts, epochs) / 60))
        memory_gb, bundle_mb = expected_memory(facts) / 1e9, expected_bundle(facts) / 1e6
        out += [
            "",
            "What it will take, by a sample of the texts and as a rough guess",
            f"  about {minutes} min, {memory_gb:.1f} GB of memory, {bundle_mb:.0f} MB of bundle",
        ]
        return "\n".join(out)

    def _read(self) -> list[tuple[str, str]]:
        report = self.report
        if report is None:
            return [("data", f"{self.config.data.path}, in this project's own layout")]
        columns = report.columns
        labels = columns.labels + (
            f", separated by {report.separator!r}" if report.separator else ""
        )
        rows = [("files", ", ".join(path.name for path in report.files[:5]))]
        rows.append(("rows", f"{report.n_rows:,}"))
        if report.n_gathered:
            rows.append(("of the same text", f"{report.n_gathered:,}, gathered"))
        rows.append(("texts", " and ".join(filter(None, (columns.text, columns.content)))))
        rows.append(("labels", labels))
        rows.append(("test points", report.split or "none"))
        return rows

    def _sections(self) -> dict[str, list[tuple[str, Any, str]]]:
        path = self.config.data.path
        sections: dict[str, list[tuple[str, Any, str]]] = {"data": [("path", path, "")]}
        for choice in self.choices:
            section, key = choice.key.split(".", 1)
            sections.setdefault(section, []).append((key, choice.value, choice.reason))
        table = self.config.data.table.model_dump(exclude_defaults=True)
        if table:
            sections["data.table"] = [(key, value, "") for key, value in table.items()]
        return sections


def make_plan(path: Path, table: TableConfig, overrides: Sequence[str] = ()) -> Plan:
    """Read the data at a path and choose a configuration for it.

    `overrides` are `section.key=value` and win over the choices. Raises ConfigError, DataError.
    """
    dataset, report, table = _read(path, table)
    facts = facts_of(dataset, SOURCE)
    labelled = facts.n_points - facts.n_without_labels
    if labelled < LEAST_POINTS:
        expected = f"at least {LEAST_POINTS} rows with a text and a label to train on"
        raise DataError(path, None, expected, f"{labelled}")
    choices = choose(facts)
    raw: dict[str, Any] = {"name": _name(path)}
    raw["data"] = {"path": str(path), "table": table.model_dump(exclude_defaults=True)}
    for choice in choices:
        section, key = choice.key.split(".", 1)
        raw.setdefault(section, {})[key] = choice.value
    for override in overrides:
        apply_override(raw, override)
    choices = _with_overrides(choices, raw, overrides)
    try:
        config = Config.model_validate(raw)
    except ValidationError as exc:
        raise ConfigError(config_sentence(exc)) from exc
    split(config, dataset)  # a table that is too small is refused before anything runs
    return Plan(config, facts, choices, report)


def _read(path: Path, table: TableConfig) -> tuple[Dataset, TableReport | None, TableConfig]:
    if has_own_layout(path):
        return open_dataset(path), None, TableConfig()
    dataset, report = read_table(path, table)
    columns = report.columns
    # What was guessed is written down, so that later code reads the same file alike.
    given = {name: getattr(columns, name) for name in ("text", "content", "labels", "id")}
    given["separator"] = report.separator
    return dataset, report, table.model_copy(update=given)


def _with_overrides(
    choices: list[Choice], raw: dict[str, Any], overrides: Sequence[str]
) -> list[Choice]:
    by_key = {choice.key: choice for choice in choices}
    for override in overrides:
        key = override.partition("=")[0].strip()
        value: Any = raw
        for part in key.split("."):
            value = value[part]
        if key.count(".") == 1 and not key.startswith("data.path"):
            by_key[key] = Choice(key, value, "given by --set")
    return list(by_key.values())


def _name(path: Path) -> str:
    """A name for runs and bundles, from that of the file or folder."""
    stem = path.resolve().name.partition(".")[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:64] or "data"


def _value(value: Any) -> str:
    """A value as TOML, whose texts, numbers, booleans and lists are those of JSON."""
    text = orjson.dumps(value).decode()
    assert tomllib.loads(f"value = {text}")["value"] == value
    return text


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]


def _about(facts: Facts) -> list[tuple[str, str]]:
    scripts = ", ".join(f"{name} {share:.0%}" for name, share in facts.scripts.items() if share)
    return [
        ("training points", f"{facts.n_points:,}, {facts.labels_a_point:.1f} labels each"),
        ("test points held", f"{facts.n_test:,}"),
        ("labels known", f"{facts.n_labels:,}"),
        ("without text", f"{facts.n_without_text:,}"),
        ("without labels", f"{facts.n_without_labels:,}"),
        ("duplicate texts", f"{facts.n_duplicates:,}"),
        ("tokens", f"99 % of the texts have at most {facts.tokens_p99}"),
        ("scripts", scripts or "no letters"),
        (
            "machine",
            f"{facts.n_cpus} CPUs, {facts.memory_bytes / 1e9:.0f} GB"
            + (", a GPU" if facts.has_gpu else ""),
        ),
    ]
