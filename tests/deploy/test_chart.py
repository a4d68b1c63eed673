"""The chart's presets: what Helm renders, against Kubernetes' schemas, the settings and compose.

No API server is asked: admission, scheduling and roll-out are not tested (docs/scaling.md).
"""

import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.edge.server import ANSWER_GRACE_S
from service.observe.telemetry import STAGES
from service.settings.settings import Settings, load_settings, variable_of
from tests.support.chart import CHART, PRESETS, ROOT, Resources, preset, render

KUBERNETES = "1.34"
CUSTOM = {
    "ScaledObject": ("scaleTargetRef", "triggers"),
    "ServiceMonitor": ("selector", "endpoints"),
    "PrometheusRule": ("groups",),
    "HTTPRoute": ("parentRefs", "rules"),
}
"""Kinds of custom resources, whose schemas no package brings, and fields that they need."""


@pytest.fixture(params=PRESETS, ids=lambda name: name or "defaults")
def resources(request: pytest.FixtureRequest) -> Resources:
    return render(preset(request.param))


def deployment(resources: Resources) -> dict[str, Any]:
    return resources["Deployment", "shop-astrolabe"]["spec"]["template"]["spec"]


def service_container(resources: Resources) -> dict[str, Any]:
    (container,) = deployment(resources)["containers"]
    return dict(container)


def variables(resources: Resources) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in service_container(resources)["env"]}


def pods(resources: Resources) -> Iterator[dict[str, Any]]:
    for (kind, _), resource in resources.items():
        if kind in ("Deployment", "Job"):
            yield resource["spec"]["template"]["spec"]


def test_every_resource_is_valid(resources: Resources) -> None:
    for (kind, name), resource in resources.items():
        if kind in CUSTOM:
            assert set(CUSTOM[kind]) <= set(resource["spec"]), name
        else:
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)


def test_a_wrong_type_is_not_valid() -> None:
    resource = render({})["Service", "shop-astrolabe"]
    broken = resource | {"spec": resource["spec"] | {"ports": "http"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_variables_are_settings_and_the_service_takes_them(resources: Resources) -> None:
    values = variables(resources)
    assert set(values) <= {variable_of(field) for field in Settings.model_fields}
    # Files of secrets are not here, so what names one is left out.
    flags = [
        f"--{name.removeprefix('ASTROLABE_').lower().replace('_', '-')}={value}"
        for name, value in values.items()
        if value is not None and "TLS" not in name
    ]
    settings = load_settings(flags)
    ports = {port["name"]: port["containerPort"] for port in service_container(resources)["ports"]}
    assert ports == {"http": settings.port, "metrics": settings.metrics_port}
    mounts = {mount["mountPath"] for mount in service_container(resources)["volumeMounts"]}
    assert str(settings.bundle_cache) in mounts
    for path in filter(None, (settings.state_dir, *settings.bundle_keys)):
        assert str(path) in mounts or str(path.parent) in mounts


def test_a_pod_may_drain_before_it_is_killed(resources: Resources) -> None:
    settings = variables(resources)
    drain_s = sum(float(settings[f"ASTROLABE_DRAIN_{which}_S"]) for which in ("DELAY", "TIMEOUT"))
    assert deployment(resources)["terminationGracePeriodSeconds"] > drain_s + ANSWER_GRACE_S


def test_probes_ask_the_routes_that_exist(resources: Resources) -> None:
    container = service_container(resources)
    paths = {
        kind: container[f"{kind}Probe"]["httpGet"]["path"]
        for kind in ("startup", "readiness", "liveness")
    }
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    schemes = {container[f"{kind}Probe"]["httpGet"]["scheme"] for kind in paths}
    assert schemes == {"HTTPS" if "ASTROLABE_TLS_CERTFILE" in variables(resources) else "HTTP"}
    start = container["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= 120


def test_containers_are_confined_as_in_compose(resources: Resources) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    assert compose["services"]["service"]["read_only"]
    for pod in pods(resources):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["limits"]["cpu"]


def test_mounts_name_volumes(resources: Resources) -> None:
    for pod in pods(resources):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_selectors_match_the_pods(resources: Resources) -> None:
    labels = resources["Deployment", "shop-astrolabe"]["spec"]["template"]["metadata"]["labels"]
    spec = resources["Deployment", "shop-astrolabe"]["spec"]
    selectors = [
        spec["selector"]["matchLabels"],
        resources["Service", "shop-astrolabe"]["spec"]["selector"],
        resources["PodDisruptionBudget", "shop-astrolabe"]["spec"]["selector"]["matchLabels"],
        resources["NetworkPolicy", "shop-astrolabe"]["spec"]["podSelector"]["matchLabels"],
    ]
    selectors += [
        each["labelSelector"]["matchLabels"]
        for each in deployment(resources)["topologySpreadConstraints"]
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
    for (kind, _), resource in resources.items():
        if kind == "Job":
            job_labels = resource["spec"]["template"]["metadata"]["labels"]
            assert not selectors[0].items() <= job_labels.items(), "a Service would send it queries"


def test_no_more_pods_than_wanted_go_during_a_roll_out(resources: Resources) -> None:
    strategy = resources["Deployment", "shop-astrolabe"]["spec"]["strategy"]
    assert strategy == {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


def test_replicas_are_counted_by_one_side_only(resources: Resources) -> None:
    scalers = {kind for kind, _ in resources} & {"HorizontalPodAutoscaler", "ScaledObject"}
    fixed = "replicas" in resources["Deployment", "shop-astrolabe"]["spec"]
    assert len(scalers) + fixed == 1


def test_the_rules_are_those_of_prometheus() -> None:
    resources = render(preset("bucket"))
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))
    assert resources["PrometheusRule", "shop-astrolabe"]["spec"] == alerts
    monitor = resources["ServiceMonitor", "shop-astrolabe"]["spec"]
    labels = resources["Service", "shop-astrolabe"]["metadata"]["labels"]
    assert labels[monitor["jobLabel"]] == "astrolabe", 'alerts.yml selects job="astrolabe"'
    ports = {port["name"] for port in resources["Service", "shop-astrolabe"]["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} <= ports


def test_it_scales_on_a_rate_of_a_metric_that_exists() -> None:
    resources = render(preset("bucket"))
    (trigger,) = resources["ScaledObject", "shop-astrolabe"]["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    assert "queue" in STAGES
    assert re.findall(r"rate\(astrolabe_(\w+)\{", query) == [
        "stage_seconds_sum",
        "stage_seconds_count",
    ]
    assert 'namespace="prod"' in query


def test_the_api_alone_is_routed_from_outside() -> None:
    ingress = render(preset("image"))["Ingress", "shop-astrolabe"]["spec"]["rules"][0]["http"]
    assert [path["path"] for path in ingress["paths"]] == ["/v1", "/v2"]
    route = render(preset("bucket"))["HTTPRoute", "shop-astrolabe"]["spec"]["rules"][0]
    assert [match["path"]["value"] for match in route["matches"]] == ["/v1", "/v2"]


def test_metrics_are_for_the_monitoring_alone() -> None:
    api, metrics = render({})["NetworkPolicy", "shop-astrolabe"]["spec"]["ingress"]
    assert "from" not in api
    assert metrics["ports"] == [{"port": "metrics"}]
    assert metrics["from"]


def test_a_gpu_goes_to_a_node_that_has_one() -> None:
    resources = render(preset("gpu"))
    assert service_container(resources)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert deployment(resources)["tolerations"]
    assert deployment(resources)["nodeSelector"]
    assert "service-gpu" in service_container(resources)["image"]
    assert "nvidia.com/gpu" not in str(render({}))


@pytest.mark.parametrize(
    "values",
    [
        {"bundel": {}},
        {"bundle": {"place": "bundles"}},
        {"bundle": {"place": "ftp://host/bundles"}},
        {"replicas": "two"},
        {"settings": {"ASTROLABE_WORKERS": 2}},
        {"settings": {"WORKERS": [2]}},
        {"autoscaling": {"kind": "vpa"}},
        {"autoscaling": {"minReplicas": 0}},
        {"ingress": {"enabled": True}},
        {"httpRoute": {"enabled": True, "host": "a.example.com"}},
        {"networkPolicy": {"monitoring": []}},
        {"service": {"port": 70000}},
        {"jobs": {"train": {"arguments": "all"}}},
    ],
    ids=str,
)
def test_wrong_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        render(values)


def test_every_value_is_in_the_schema_and_every_preset_says_what_it_is_for() -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert set(values) == set(schema["properties"]) - {"global"}
    for path in (CHART / "presets").iterdir():
        assert path.read_text(encoding="utf-8").startswith("# ")
