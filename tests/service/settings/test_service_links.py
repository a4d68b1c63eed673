"""What Kubernetes puts into a pod is told from settings by name and value together."""

import pytest

from service.errors import SettingsInvalid
from service.settings.settings import ignored_variables, load_settings
from tests.support.processes import run_service

# What Kubernetes sets for a Service of this name with a port named http.
SERVICES = ["ASTROLABE", "ASTROLABE_ADMIN", "ASTROLABE_METRICS", "ASTROLABE_SERVICE"]
ADDRESSES = [("10.0.0.1", "tcp://10.0.0.1:8000"), ("fd00::1", "tcp://[fd00::1]:8000")]


def of_service(name: str, address: str, url: str) -> dict[str, str]:
    return {
        f"{name}_SERVICE_HOST": address,
        f"{name}_SERVICE_PORT": "8000",
        f"{name}_SERVICE_PORT_HTTP": "8000",
        f"{name}_PORT": url,
        f"{name}_PORT_8000_TCP": url,
        f"{name}_PORT_8000_TCP_PROTO": "tcp",
        f"{name}_PORT_8000_TCP_PORT": "8000",
        f"{name}_PORT_8000_TCP_ADDR": address,
        f"{name}_PORT_53_UDP": url.replace("tcp", "udp"),
    }


@pytest.mark.parametrize(("address", "url"), ADDRESSES)
@pytest.mark.parametrize("service", SERVICES)
def test_variables_of_a_service_are_ignored_and_named(
    service: str, address: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = of_service(service, address, url)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(["--bundle", "b"])
    assert (settings.port, settings.admin_port, settings.metrics_port) == (8000, None, None)
    assert ignored_variables() == sorted(variables)


def test_settings_beside_them_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in of_service("ASTROLABE_ADMIN", *ADDRESSES[0]).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ASTROLABE_PORT", "9001")
    assert load_settings(["--bundle", "b"]).port == 9001
    assert "ASTROLABE_PORT" not in ignored_variables()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ASTROLABE_PORT", "http://10.0.0.1:8000"),
        ("ASTROLABE_PORT", "tcp://10.0.0.1"),
        ("ASTROLABE_PROT", "tcp://10.0.0.1:8000"),
        ("ASTROLABE_SERVICE_HOST", "my-host"),
        ("ASTROLABE_SERVICE_PORT", "http"),
        ("astrolabe_service_host", "10.0.0.1"),
        ("ASTROLABE_PORT_8000_TCP_NAME", "tcp"),
    ],
)
def test_other_variables_are_refused_as_before(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid, match=name):
        load_settings(["--bundle", "b"])


def test_the_start_says_what_it_ignores() -> None:
    done = run_service("--bundle", "/nowhere", "--port", "0", ASTROLABE_PORT="tcp://10.0.0.1:8000")
    assert "ignoring variables of Kubernetes' Services" in done.stderr
    assert '"ASTROLABE_PORT"' in done.stderr
    assert "/nowhere" in done.stderr.splitlines()[-1]
