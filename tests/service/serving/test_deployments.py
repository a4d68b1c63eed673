"""Several bundles, swapped while serving: what answers, and what a failure leaves behind."""

import asyncio
import sqlite3
import weakref
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.api.app import create_app
from service.bundle.manifest import POINTER
from service.core.drift import LENGTH_BOUNDS, SCORE_BOUNDS, histogram_counts
from service.observe.telemetry import Telemetry
from service.serving.deployment import open_changed_engine
from tests.support.bundle_root import ADMIN, admin, ask, bundle_id, reseal, serving_root
from tests.support.fakes import SAFETY_S, FakePredict, Running, fake_settings

pytestmark = pytest.mark.anyio


async def test_activating_switches_and_rolling_back_returns(root: Path) -> None:
    async with serving_root(root) as service:
        assert (await ask(service))["bundle_id"] == bundle_id(root / "one")
        done = await admin(service, "activate", bundle="two")
        assert done.status_code == 200, done.text
        assert done.json()["models"][0]["can_roll_back"]
        assert (await ask(service))["bundle_id"] == bundle_id(root / "two")
        assert (await admin(service, "rollback")).status_code == 200
        assert (await ask(service))["bundle_id"] == bundle_id(root / "one")
        assert await service.metric('astrolabe_bundle_swap_total{result="activated"}') == 1
        assert await service.metric('astrolabe_bundle_swap_total{result="rolled_back"}') == 1


async def test_a_refused_bundle_leaves_the_old_one_serving(root: Path) -> None:
    async with serving_root(root) as service:
        refused = await admin(service, "activate", bundle="broken")
        assert (refused.status_code, refused.json()["code"]) == (422, "bundle_refused")
        assert "labels.jsonl" in refused.json()["detail"]
        assert (await ask(service))["bundle_id"] == bundle_id(root / "one")
        assert await service.metric('astrolabe_bundle_swap_total{result="failed"}') == 1


async def test_a_change_that_waits_for_its_file_holds_up_no_answer_of_the_next_bundle(
    root: Path, tmp_path: Path
) -> None:
    async with serving_root(root, state_dir=tmp_path / "state") as service:
        labels = {"labels": [{"id": "new", "text": "a white whale"}]}
        other = sqlite3.connect(tmp_path / "state" / "tiny.sqlite", isolation_level=None)
        with closing(other):
            other.execute("BEGIN IMMEDIATE")  # another program holds the file
            post = service.client.post("/v1/labels", json=labels, headers=ADMIN)
            change = asyncio.create_task(post)
            assert (await admin(service, "activate", bundle="two")).status_code == 200
            await asyncio.sleep(0.1)  # the old bundle is closed meanwhile
            assert (await ask(service))["bundle_id"] == bundle_id(root / "two")
        assert (await change).status_code == 200


async def test_requests_under_way_are_answered_by_the_bundle_that_took_them(root: Path) -> None:
    async with serving_root(root) as service:
        before = [asyncio.create_task(ask(service)) for _ in range(40)]
        await asyncio.sleep(0)
        await admin(service, "activate", bundle="two")
        after = [asyncio.create_task(ask(service)) for _ in range(10)]
        ids = {answer["bundle_id"] for answer in await asyncio.gather(*before)}
        assert ids <= {bundle_id(root / "one"), bundle_id(root / "two")}
        late = {answer["bundle_id"] for answer in await asyncio.gather(*after)}
        assert late == {bundle_id(root / "two")}


async def test_models_stand_side_by_side_and_are_asked_by_name(root: Path) -> None:
    async with serving_root(root) as service:
        await admin(service, "activate", bundle="other")
        assert (await ask(service))["bundle_id"] == bundle_id(root / "one")
        answer = await ask(service, model="other")
        assert (answer["bundle_id"], answer["score_kind"]) == (bundle_id(root / "other"), "logit")
        unknown = await service.recommend({"query": "x", "model": "nobody"})
        assert (unknown.status_code, unknown.json()["code"]) == (404, "model_unknown")
        gone = await service.client.delete("/admin/models/other", headers=ADMIN)
        assert gone.status_code == 200
        assert (await service.recommend({"query": "x", "model": "other"})).status_code == 404
        default = await service.client.delete("/admin/models/tiny", headers=ADMIN)
        assert default.status_code == 422


async def test_a_canary_gets_its_share_by_request_id_or_by_header(root: Path) -> None:
    one, two = bundle_id(root / "one"), bundle_id(root / "two")
    async with serving_root(root) as service:
        done = await admin(service, "canary", bundle="two", percent=30)
        assert done.json()["models"][0]["bundles"][1]["canary_percent"] == 30
        ids = [(await ask(service, X_Request_Id=f"caller-{i}"))["bundle_id"] for i in range(200)]
        assert 30 <= ids.count(two) <= 90
        again = [(await ask(service, X_Request_Id=f"caller-{i}"))["bundle_id"] for i in range(200)]
        assert again == ids
        assert (await ask(service, X_Bundle="canary"))["bundle_id"] == two
        assert (await ask(service, X_Bundle=one[:12]))["bundle_id"] == one
        await admin(service, "canary", bundle="two", percent=0)
        assert {(await ask(service))["bundle_id"] for _ in range(20)} == {one}
        await admin(service, "activate", bundle="two")  # promotes it
        assert {(await ask(service))["bundle_id"] for _ in range(20)} == {two}
        gone = await service.recommend({"query": "x"}, X_Bundle="canary")
        assert (gone.status_code, gone.json()["code"]) == (404, "no_such_bundle")


async def test_rolling_back_to_the_canary_ends_it_and_a_stranger_is_no_canary(root: Path) -> None:
    one, two = bundle_id(root / "one"), bundle_id(root / "two")
    async with serving_root(root) as service:
        await admin(service, "activate", bundle="two")
        await admin(service, "canary", bundle="one", percent=50)
        report = (await admin(service, "rollback")).json()["models"][0]
        assert [(b["bundle_id"], b["role"]) for b in report["bundles"]] == [(one, "current")]
        assert {(await ask(service))["bundle_id"] for _ in range(10)} == {one}
        refused = await admin(service, "canary", bundle="other", percent=50)
        assert (refused.status_code, refused.json()["code"]) == (422, "bundle_refused")
        stranger = bundle_id(root / "other")
        sample = f'astrolabe_bundle_info{{bundle_id="{stranger}",name="other",version="0.1.0"}}'
        assert await service.metric(sample) == 0
        assert await service.metric('astrolabe_bundle_swap_total{result="canary"}') == 1
        assert two != one


@pytest.mark.parametrize("name", ["../one", "/etc", "one/../two", "", "a/b/c/d", "..", "."])
async def test_nothing_outside_the_bundle_root_can_be_named(root: Path, name: str) -> None:
    async with serving_root(root) as service:
        refused = await admin(service, "activate", bundle=name)
        assert refused.status_code == 422, refused.text


async def test_a_link_out_of_the_bundle_root_is_not_followed(root: Path, tiny_bundle: Path) -> None:
    (root / "link").symlink_to(tiny_bundle)
    async with serving_root(root) as service:
        refused = await admin(service, "activate", bundle="link")
        assert (refused.status_code, refused.json()["code"]) == (404, "no_such_bundle")


async def test_nothing_may_be_changed_without_an_admin_key(root: Path) -> None:
    settings = fake_settings(bundle=root, device="cpu")
    app = create_app(open_changed_engine(root, settings), settings, Telemetry())
    async with app.app.router.lifespan_context(app.app):
        service = Running(app, FakePredict())
        assert (await admin(service, "activate", bundle="two")).status_code == 403


async def test_a_caller_s_own_key_changes_nothing(root: Path) -> None:
    async with serving_root(root, api_key="caller") as service:
        body, headers = {"bundle": "two"}, {"Authorization": "Bearer caller"}
        refused = await service.client.post("/admin/bundles/activate", json=body, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        assert (await admin(service, "activate", bundle="two")).status_code == 200


def a_reference(best_score: float) -> dict[str, Any]:
    """Of a thousand texts, five tokens long, that all got the same best score."""
    values = {"top_score": (best_score, SCORE_BOUNDS), "query_tokens": (5.0, LENGTH_BOUNDS)}
    parts = {
        name: {
            "bounds": [float(bound) for bound in bounds],
            "counts": histogram_counts(np.full(1000, value), bounds).tolist(),
        }
        for name, (value, bounds) in values.items()
    }
    return {"split": "validation", "n_queries": 1000, **parts}


async def test_drift_is_from_the_reference_of_the_one_bundle_that_answers(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    reseal(tiny_bundle, tmp_path / "b" / "one", reference=a_reference(0.001))
    reseal(tiny_bundle, tmp_path / "b" / "two")
    (tmp_path / "b" / POINTER).write_text("one")
    async with serving_root(tmp_path / "b") as service:
        for _ in range(10):
            await service.recommend({"query": ["the white whale"] * 60})
        drift = 'astrolabe_score_drift{of="top_score"}'
        assert await service.metric(drift) > 0.25
        done = await admin(service, "canary", bundle="two", percent=1)
        assert done.status_code == 200, done.text
        await service.recommend({"query": ["the white whale"] * 60})
        scraped = (await service.client.get("/metrics")).text
        assert drift not in scraped


async def test_a_closed_bundle_is_freed_though_a_request_still_refers_to_it(root: Path) -> None:
    async with serving_root(root) as service:
        await admin(service, "activate", bundle="two")
        held = [service.app.serving.default.engine]
        manifest = weakref.ref(held[0].manifest)
        await admin(service, "activate", bundle="one")
        await asyncio.sleep(0)
        held.clear()
        async with asyncio.timeout(SAFETY_S):
            while manifest() is not None:
                await asyncio.sleep(0.01)
