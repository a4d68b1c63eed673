"""Prints requirements of pyproject.toml, one a line, so that the Dockerfile need not list them.

    python requirements.py service remote   the service's and an extra's, without ONNX Runtime
    python requirements.py train loadtest   the requirements that these extras add

ONNX Runtime is not among them, because each image installs its own build of it: the CPU's build is
180 MB smaller to fetch than the GPU's.
"""

import sys
import tomllib
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], groups: list[str]) -> list[str]:
    """The requirements of these groups: extras, or `service` for the project without extras.

    >>> requirements({"dependencies": ["numpy>=2.0", "onnxruntime-gpu>=1.22"]}, ["service"])
    ['numpy>=2.0']
    """
    table = project.get("optional-dependencies", {}) | {"service": project["dependencies"]}
    lines = [line for group in groups for line in table[group]]
    return [line for line in lines if not line.startswith("onnxruntime")]


if __name__ == "__main__":
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    sys.stdout.write("\n".join(requirements(project, sys.argv[1:])) + "\n")
