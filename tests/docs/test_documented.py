"""Docs that can be wrong are tested: settings, metrics, error codes and routes."""

import ast
from pathlib import Path

import pytest

from service.api.app import create_app
from service.background import EVENT_LOOP
from service.gate.problems import problem_kinds
from service.observe.gpu_metrics import FAMILIES
from service.observe.telemetry import Telemetry
from service.settings.settings import Settings, documentation, variable_of
from tests.support.fakes import FakePredict, fake_engine, fake_settings

DOCS = Path(__file__).resolve().parents[2] / "docs"
HTTP_API = DOCS / "http-api.md"
CONFIGURATION = DOCS / "configuration.md"


def metric_names() -> list[str]:
    telemetry = Telemetry()
    telemetry.describe_bundle(bundle_id="b", name="n", version="v")
    telemetry.describe_device(requested="auto", active="cpu")
    suffix = {"counter": "_total"}
    families = telemetry.registry.collect()
    names = [family.name + suffix.get(family.type, "") for family in families]
    of_the_master = ["astrolabe_workers", "astrolabe_worker_restarts_total"]
    of_the_master += ["astrolabe_worker_hangs_total", "astrolabe_worker_renewals_total"]
    of_the_master += [f"astrolabe_{name}" for name in FAMILIES]  # and of a GPU
    return [name for name in names if name.startswith("astrolabe_")] + of_the_master


def routes() -> list[str]:
    app = create_app(fake_engine(FakePredict()), fake_settings(), Telemetry())
    paths = app.app.openapi()["paths"]
    return [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]


def test_configuration_page_is_what_the_settings_generate() -> None:
    stale = "run: python -m service.settings > docs/configuration.md"
    assert CONFIGURATION.read_text(encoding="utf-8") == documentation(), stale


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_documented(name: str) -> None:
    assert f"`{variable_of(name)}`" in CONFIGURATION.read_text(encoding="utf-8")


def test_every_metric_is_documented_and_no_other() -> None:
    page = HTTP_API.read_text(encoding="utf-8")
    section = page.partition("## Metrics")[2].partition("##")[0]
    documented = {line.split("`")[1] for line in section.splitlines() if line.startswith("| `")}
    assert documented == set(metric_names())
    assert len(documented) >= 12


def test_every_error_code_is_documented_with_its_status() -> None:
    lines = HTTP_API.read_text(encoding="utf-8").splitlines()
    for code, kind in problem_kinds().items():
        rows = [line for line in lines if f"`{code}`" in line]
        assert rows, code
        tabled = [row for row in rows if row.startswith("| ") and row[2:5].isdigit()]
        assert all(row.startswith(f"| {kind.status} ") for row in tabled), code


def test_every_route_is_documented() -> None:
    page = HTTP_API.read_text(encoding="utf-8")
    for route in routes():
        assert f"`{route}`" in page, route


STARTERS = frozenset({"repeat", "once", "thread", "run", "last_resort"})
"""Methods of `Background` that take the task's name first."""


def background_tasks() -> set[str]:
    """The names of all background tasks in the code: literals, or constants of their module."""
    names = {EVENT_LOOP}
    for path in (DOCS.parent / "service").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {
            target.id: node.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.AnnAssign)
            and isinstance(target := node.target, ast.Name)
            and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = ast.unparse(node.func.value)
            if node.func.attr in STARTERS and owner.endswith("background") and node.args:
                first = node.args[0]
                name = first.value if isinstance(first, ast.Constant) else None
                if isinstance(first, ast.Name):
                    name = constants.get(first.id)
                names |= {name} if isinstance(name, str) else set()
    return names


def test_every_background_task_is_in_the_runbook_and_no_other() -> None:
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    section = page.partition("## Background tasks")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert {row.split("`")[1] for row in rows} == background_tasks()
    assert len(rows) == len(background_tasks()) >= 13
    assert all(cell.strip() for row in rows for cell in row.split("|")[1:4])
