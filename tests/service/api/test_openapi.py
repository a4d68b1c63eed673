from collections.abc import Iterator
from typing import Any

import pytest

from service.api.app import create_app
from service.observe.telemetry import Telemetry
from tests.support.fakes import FakePredict, fake_engine, fake_settings

LABEL = "/v1/labels/{label_id}"


@pytest.fixture(scope="module")
def paths() -> dict[str, Any]:
    app = create_app(fake_engine(FakePredict()), fake_settings(admin_key="admin"), Telemetry())
    found: dict[str, Any] = app.app.openapi()["paths"]
    return found


def links_of(operation: dict[str, Any]) -> dict[str, Any]:
    success = next(answer for status, answer in operation["responses"].items() if status[0] == "2")
    found: dict[str, Any] = success.get("links", {})
    return found


def target(link: dict[str, Any]) -> tuple[str, str]:
    """Path and verb that a link leads to."""
    hash_, _, path, verb = link["operationRef"].split("/")
    assert hash_ == "#"
    return path.replace("~1", "/").replace("~0", "~"), verb


def every_link(paths: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for verbs in paths.values():
        for operation in verbs.values():
            yield from links_of(operation).values()


def test_links_lead_to_operations_and_fill_parameters_that_these_have(
    paths: dict[str, Any],
) -> None:
    seen = 0
    for link in every_link(paths):
        path, verb = target(link)
        operation = paths[path][verb]
        known = {each["name"] for each in operation.get("parameters", [])}
        assert set(link["parameters"]) <= known
        assert ("requestBody" in link) <= ("requestBody" in operation)
        seen += 1
    assert seen >= 14


@pytest.mark.parametrize(("path", "verb"), [("/v1/labels", "post"), (LABEL, "put")])
def test_a_label_that_was_written_can_be_looked_up_changed_and_removed_by_links(
    paths: dict[str, Any], path: str, verb: str
) -> None:
    found = {target(link) for link in links_of(paths[path][verb]).values()}
    assert found == {(LABEL, "get"), (LABEL, "put"), (LABEL, "delete")}


def test_a_field_that_may_be_left_out_may_be_null() -> None:
    """The service takes null for it (test_json_route), so a generated client may send it."""
    app = create_app(fake_engine(FakePredict()), fake_settings(admin_key="admin"), Telemetry())
    schemas = app.app.openapi()["components"]["schemas"]
    checked = 0
    for name in ("EmbeddingsRequest", "ActivateBody", "CanaryBody", "RollbackBody"):
        schema = schemas[name]
        for field, about in schema["properties"].items():
            if field not in schema.get("required", ()):
                assert {"type": "null"} in about["anyOf"], (name, field)
                checked += 1
    assert checked > 3
