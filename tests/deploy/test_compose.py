import re
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml

from loadtest.arguments import build_parser
from service.edge.server import ANSWER_GRACE_S
from service.settings.settings import Settings, variable_of
from tests.support.dockerfile import ROOT, read_stages

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
BUILT = [name for name, service in SERVICES.items() if "build" in service]
SERVING = ("service", "service-gpu")


def mounts(name: str) -> dict[str, tuple[str, bool]]:
    """Where each volume or folder is mounted, and whether it is read-only."""
    found = {}
    for volume in SERVICES[name].get("volumes", []):
        source, target, *options = volume.split(":")
        found[source] = (target, "ro" in options)
    return found


def test_services_are_the_ones_promised_and_the_extras_need_a_profile() -> None:
    always = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert always == {"trainer", "service", "prometheus", "grafana"}
    assert SERVICES["service-gpu"]["profiles"] == ["gpu"]
    assert SERVICES["loadtest"]["profiles"] == ["loadtest"]


@pytest.mark.parametrize("name", BUILT)
def test_built_images_name_a_stage_of_the_dockerfile(name: str) -> None:
    build = SERVICES[name]["build"]
    stages = read_stages()
    assert build["target"] in stages
    known = stages[f"packages-{name}"].arguments("ARG") if "args" in build else []
    assert {argument.partition("=")[0] for argument in known} >= set(build.get("args", {}))


@pytest.mark.parametrize("name", [name for name in SERVICES if name not in BUILT])
def test_other_images_are_pinned_to_a_version(name: str) -> None:
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", SERVICES[name]["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_mounts_and_dependencies_exist(name: str) -> None:
    for source, (_, read_only) in mounts(name).items():
        if source.startswith("."):
            assert (ROOT / source).is_dir()
            assert read_only
        else:
            assert source in COMPOSE["volumes"]
    assert set(SERVICES[name].get("depends_on", [])) <= set(SERVICES)


@pytest.mark.parametrize("name", SERVING)
def test_variables_of_the_service_are_settings(name: str) -> None:
    variables = set(SERVICES[name]["environment"])
    assert variables
    assert variables <= {variable_of(field) for field in Settings.model_fields}


@pytest.mark.parametrize("name", SERVING)
def test_service_waits_for_the_trainer_and_serves_what_it_sealed(name: str) -> None:
    service, trainer = SERVICES[name], SERVICES["trainer"]
    assert service["depends_on"]["trainer"]["condition"] == "service_completed_successfully"
    assert mounts(name)["bundles"] == ("/bundles", True)
    assert mounts("trainer")["bundles"] == ("/app/var/bundles", False)
    config = trainer["command"][trainer["command"].index("--config") + 1]
    assert (ROOT / config).is_file()
    bundle = PurePosixPath(service["environment"]["ASTROLABE_BUNDLE"])
    assert bundle == PurePosixPath("/bundles") / PurePosixPath(config).stem


@pytest.mark.parametrize("name", SERVING)
def test_grace_period_outlasts_the_drain(name: str) -> None:
    fields = Settings.model_fields
    drain_s = fields["drain_delay_s"].default + fields["drain_timeout_s"].default + ANSWER_GRACE_S
    assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) > drain_s


@pytest.mark.parametrize("name", [*BUILT, "prometheus"])
def test_containers_are_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_service_has_limits() -> None:
    assert SERVICES["service"]["cpus"] >= 1
    assert SERVICES["service"]["mem_limit"]


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_open_to_this_machine_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_load_test_command_is_one_that_loadtest_takes() -> None:
    options = build_parser().parse_args(SERVICES["loadtest"]["command"])
    assert options.verb == "run"
    assert options.url == "http://service:8000"
    assert options.api_key_env in SERVICES["loadtest"]["environment"]
    assert options.api_key_env in SERVICES["service"]["environment"]
