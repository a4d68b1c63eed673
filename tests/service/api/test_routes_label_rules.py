"""Label rules over HTTP: in force for every route, said by /v1/info, refused where they fit not."""

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.app import create_app
from service.errors import SettingsInvalid
from service.observe.telemetry import Telemetry
from service.serving.deployment import check_label_rules, open_changed_engine
from tests.support.fakes import FakePredict, Running, fake_settings
from tests.support.tiny_bundle import seal

pytestmark = pytest.mark.anyio
ADMIN = {"Authorization": "Bearer admin"}


def written(folder: Path, **models: Any) -> Path:
    path = folder / "rules.json"
    path.write_text(json.dumps(models))
    return path


async def test_rules_hold_for_every_route_and_info_says_so(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    path = written(tmp_path, tiny={"only": {"ids": ["L000", "L001", "L003"]}})
    settings = fake_settings(bundle=tiny_bundle, device="cpu", label_rules=path)
    app = create_app(open_changed_engine(tiny_bundle, settings), settings, Telemetry())
    async with app.app.router.lifespan_context(app.app):
        service = Running(app, FakePredict())
        async with service.client:
            info = (await service.client.get("/v1/info")).json()
            assert info["label_rules"] == {"open": 3, "labels": 50}
            asked = {"query": ["whale", "rome"], "k": 9, "include": ["embedding"]}
            results = (await service.recommend(asked)).json()["results"]
            vectors = [result["embedding"] for result in results]
            by_vector = await service.client.post(
                "/v1/recommend/by-embedding", json={"embedding": vectors, "k": 9}
            )
            for result in results + by_vector.json()["results"]:
                assert {label["id"] for label in result["labels"]} == {"L000", "L001", "L003"}
                assert "plan" not in result
            filtered = await service.recommend({"query": "rome", "deny": ["L000"], "k": 9})
            assert filtered.json()["results"][0]["plan"]["open"] == 2


async def test_info_says_that_there_are_none(tiny_bundle: Path) -> None:
    settings = fake_settings(bundle=tiny_bundle, device="cpu")
    app = create_app(open_changed_engine(tiny_bundle, settings), settings, Telemetry())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/v1/info")).json()["label_rules"] is None


async def test_a_new_bundle_that_lacks_a_ruled_label_is_refused(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    path = written(tmp_path, tiny={"exclude": {"ids": ["L000"]}})
    newer = shutil.copytree(tiny_bundle, tmp_path / "newer")
    manifest = json.loads((newer / "manifest.json").read_text())
    seal(newer, manifest | {"created": "2030-01-01T00:00:00+00:00"})
    settings = fake_settings(
        bundle=tiny_bundle,
        bundle_root=tmp_path,
        device="cpu",
        admin_key="admin",
        label_rules=path,
    )
    app = create_app(open_changed_engine(tiny_bundle, settings), settings, Telemetry())
    async with app.app.router.lifespan_context(app.app):
        service = Running(app, FakePredict())
        async with service.client:
            written(tmp_path, tiny={"exclude": {"ids": ["gone"]}})
            activate = {"url": "/admin/bundles/activate", "json": {"bundle": "newer"}}
            refused = await service.client.post(**activate, headers=ADMIN)
            assert refused.status_code == 422
            assert "no label 'gone'" in refused.json()["detail"]
            written(tmp_path, tiny={"exclude": {"ids": ["L001"]}})
            done = await service.client.post(**activate, headers=ADMIN)
            assert done.status_code == 200, done.text
            found = (await service.recommend({"query": "rome", "k": 50})).json()["results"][0]
            ids = {label["id"] for label in found["labels"]}
            assert "L000" in ids
            assert "L001" not in ids


def test_rules_of_a_model_that_is_not_served_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    path = written(tmp_path, tinny={"exclude": {"ids": ["L000"]}})
    settings = fake_settings(bundle=tiny_bundle, device="cpu", label_rules=path)
    engine = open_changed_engine(tiny_bundle, settings)
    with pytest.raises(SettingsInvalid, match="rules for the model 'tinny'"):
        check_label_rules([engine], settings)
