"""Prints requirements of pyproject.toml, one a line, so that the Dockerfile lists none itself.

    python requirements.py service          what the service needs, ONNX Runtime left out
    python requirements.py train loadtest   what these extras add

ONNX Runtime is left out because each image picks its build: the CPU's is 180 MB smaller to fetch.
"""

import sys
import tomllib
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], groups: list[str]) -> list[str]:
    """The requirements of the named groups; `service` is the project without extras.

    >>> requirements({"dependencies": ["numpy>=2.0", "onnxruntime-gpu>=1.22"]}, ["service"])
    ['numpy>=2.0']
    """
    table = project.get("optional-dependencies", {}) | {"service": project["dependencies"]}
    wanted = [line for group in groups for line in table[group]]
    return [line for line in wanted if not line.startswith("onnxruntime")]


if __name__ == "__main__":
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    sys.stdout.write("\n".join(requirements(project, sys.argv[1:])) + "\n")
