"""Renders the Helm chart as `helm template` does.

The library is Helm itself, which is written in Go and starts threads. So a process of its own
renders, and no test forks beside them.
"""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "astrolabe"
PRESETS = ("", *sorted(path.stem for path in (CHART / "presets").glob("*.yaml")))

Resources = dict[tuple[str, str], dict[str, Any]]
"""Manifests by kind and name."""

_CHILD = """
import json, sys
import helm_python
from helm_python import chart
path, values = sys.argv[1], json.loads(sys.stdin.read())
try:
    loaded = chart.Chart.load(path)
    loaded.validate_schema(values)
    files = loaded.render(values, name="shop", namespace="prod", revision=3)
    lint = chart.lint(path, values, strict=True)
    print(json.dumps({"files": files, "lint": lint["messages"]}))
except helm_python.HelmError as exc:
    print(json.dumps({"error": str(exc)}))
"""


def preset(name: str) -> dict[str, Any]:
    """The values of a preset; none of the chart's own."""
    if not name:
        return {}
    text = (CHART / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def render(values: dict[str, Any]) -> Resources:
    """What the chart makes of these values; raises ValueError where Helm refuses them."""
    return _render(json.dumps(values, sort_keys=True))


@cache
def _render(values: str) -> Resources:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(CHART)],
        input=values,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise ValueError(answer["error"])
    faults = [message for message in answer["lint"] if message["severity"] > 1]
    assert not faults, faults
    resources: Resources = {}
    for path, text in answer["files"].items():
        if path.endswith("NOTES.txt"):
            continue
        for document in yaml.safe_load_all(text):
            if document is not None:
                place = document["kind"], document["metadata"]["name"]
                assert place not in resources, f"{path}: {place} again"
                resources[place] = document
    return resources
