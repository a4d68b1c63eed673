import json
import re
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
import yaml

from service.core.drift import REFERENCE_SIZE
from service.core.live_recall import Window
from service.core.types import Prediction, StageTimings
from service.observe.telemetry import Telemetry
from tests.support.dockerfile import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
CONFIG = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
DASHBOARD = json.loads((GRAFANA / "dashboards" / "astrolabe.json").read_text(encoding="utf-8"))

ONE = np.ones(1, np.float32)

BY_PROMETHEUS = {"instance", "job", "le"}
OPERATORS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[tuple[str, str]]:
    """(where it is, PromQL) of everything that asks Prometheus."""
    asked = [(rule["alert"], rule["expr"]) for rule in rules()]
    for panel in panels():
        asked += [(f"{panel['title']}:{one['refId']}", one["expr"]) for one in panel["targets"]]
    return asked


def series_of_the_service() -> dict[str, set[str]]:
    """Every series name that a scrape can hold, with its labels, after a little traffic."""
    telemetry = Telemetry()
    telemetry.describe_bundle(bundle_id="b", name="n", version="v")
    telemetry.describe_device(requested="auto", active="cpu")
    telemetry.watch(queue_tokens=lambda: 0)
    telemetry.key_used("team")
    telemetry.request_finished("/v1/recommend", 200, 0.001)
    telemetry.answered("balanced", 1, 0.001)
    telemetry.queued(0.001)
    telemetry.batch_done(1, StageTimings(0.001, 0.001, 0.001, 1, 1))
    telemetry.dropped("expired")
    telemetry.live_recall("fast", Window(1, 1, 1))
    telemetry.served([Prediction(ONE, ONE, ONE, False, n_tokens=1)] * (REFERENCE_SIZE + 1000))
    telemetry.served([Prediction(ONE, ONE, ONE, False, n_tokens=1)] * 1000)
    telemetry.rejected("queue_full")
    telemetry.background.last_resort("retire").failed(ValueError("a bug"))
    # of the master of several workers
    found: dict[str, set[str]] = {
        "astrolabe_worker_restarts_total": set(),
        "astrolabe_worker_hangs_total": set(),
    }
    for line in telemetry.render().decode().splitlines():
        if line and not line.startswith("#"):
            name, _, labels = line.rpartition(" ")[0].partition("{")
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """(metric, labels matched) of every selector in a PromQL expression.

    >>> selectors('sum by (le) (rate(a_bucket{stage="queue"}[5m])) / b > 0.5')
    [('a_bucket', {'stage'}), ('b', set())]
    """
    text = re.sub(r'"(?:\\.|[^"\\])*"', '""', expression)
    text = re.sub(r"\[[^\]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)", "", text)
    found = []
    for name, call, labels in re.findall(
        r"(?<![\w.$])([a-zA-Z_:][\w:]*)\s*(\()?(\{[^}]*\})?", text
    ):
        if not call and name not in OPERATORS:
            found.append((name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels))))
    return found


def grouped_by(expression: str) -> set[str]:
    """Every label that the expression groups by."""
    groups = re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", expression)
    return {label.strip() for group in groups for label in group.split(",")}


@pytest.mark.parametrize(("where", "expression"), expressions(), ids=lambda value: value[:60])
def test_expressions_use_only_series_and_labels_of_the_service(where: str, expression: str) -> None:
    series = series_of_the_service() | {"up": set()}
    used = selectors(expression)
    assert used
    known = set(BY_PROMETHEUS)
    for name, labels in used:
        assert name in series, f"{where} asks for {name}, which the service does not expose"
        assert labels <= series[name] | BY_PROMETHEUS, f"{where}: labels of {name}"
        known |= series[name]
    assert grouped_by(expression) <= known


def test_a_misspelt_metric_would_be_noticed() -> None:
    expression = 'sum by (status) (rate(astrolabe_requests_seconds_count{state="200"}[5m]))'
    assert selectors(expression) == [("astrolabe_requests_seconds_count", {"state"})]
    assert "astrolabe_requests_seconds_count" not in series_of_the_service()
    assert grouped_by(expression) == {"status"}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_is_explained_where_its_annotation_points(rule: dict[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (\w+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert anchor == rule["alert"].lower()
    assert rule["alert"] in headings
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_is_tested_to_fire_and_to_stay_quiet(rule: dict[str, Any]) -> None:
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    checks = [check for test in tests for check in test["alert_rule_test"]]
    mine = [
        bool(check.get("exp_alerts")) for check in checks if check["alertname"] == rule["alert"]
    ]
    assert set(mine) == {True, False}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    "command", [["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]]
)
def test_promtool_agrees(command: list[str]) -> None:
    done = subprocess.run(
        ["promtool", *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_looks_for_services_of_the_compose_file_under_the_name_the_alerts_use() -> None:
    (job,) = CONFIG["scrape_configs"]
    (discovery,) = job["dns_sd_configs"]
    assert {"service", "service-gpu"} == set(discovery["names"]) <= set(COMPOSE)
    assert discovery["port"] == 8000
    named = set(re.findall(r'job="(\w+)"', "".join(text for _, text in expressions())))
    assert named == {job["job_name"]}


def test_dashboard_asks_the_chosen_data_source_and_replicas() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all('instance=~"$instance"' in target["expr"] for target in panel["targets"])


def test_grafana_is_provisioned_from_what_compose_mounts() -> None:
    folder = GRAFANA / "provisioning"
    (source,) = yaml.safe_load(
        (folder / "datasources" / "prometheus.yml").read_text(encoding="utf-8")
    )["datasources"]
    (provider,) = yaml.safe_load(
        (folder / "dashboards" / "astrolabe.yml").read_text(encoding="utf-8")
    )["providers"]
    mounted = COMPOSE["grafana"]["volumes"]
    dashboards = provider["options"]["path"]
    assert f"./deploy/grafana/dashboards:{dashboards}:ro" in mounted
    assert "./deploy/grafana/provisioning:/etc/grafana/provisioning:ro" in mounted
    home = COMPOSE["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{dashboards}/astrolabe.json"
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == CONFIG["global"]["scrape_interval"]
