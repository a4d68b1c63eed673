"""Following: a process serves what another one was told, and what a pointer says.

Each `serving_root` here stands for one worker; workers of a machine share a state folder.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from service.bundle.manifest import POINTER
from tests.support.bundle_root import ADMIN, admin, ask, bundle_id, serving_root
from tests.support.fakes import SAFETY_S, Running

pytestmark = pytest.mark.anyio

Served = dict[str, list[tuple[str, str, float]]]
"""Model to (folder of the bundle, role, canary's share) of what is open."""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


async def served_by(service: Running, root: Path) -> Served:
    names = {bundle_id(root / name): name for name in ("one", "two", "other")}
    models = (await service.client.get("/v1/models")).json()["models"]
    return {
        model["name"]: [
            (names[bundle["bundle_id"]], bundle["role"], bundle["canary_percent"] or 0)
            for bundle in model["bundles"]
        ]
        for model in models
    }


async def until(reached: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SAFETY_S):
        while not await reached():
            await asyncio.sleep(0.02)


async def until_served(service: Running, root: Path, served: Served) -> None:
    async def reached() -> bool:
        return await served_by(service, root) == served

    await until(reached)


ONE, TWO, OTHER = ("one", "current", 0), ("two", "current", 0), ("other", "current", 0)
CHANGES: list[tuple[str, list[tuple[str, dict[str, object]]], Served]] = [
    ("another bundle", [("activate", {"bundle": "two"})], {"tiny": [TWO]}),
    ("one more model", [("activate", {"bundle": "other"})], {"tiny": [ONE], "other": [OTHER]}),
    (
        "a canary and its share",
        [("canary", {"bundle": "two", "percent": 30}), ("canary", {"bundle": "two", "percent": 7})],
        {"tiny": [ONE, ("two", "canary", 7)]},
    ),
    (
        "a canary that ended",
        [("canary", {"bundle": "two", "percent": 30}), ("DELETE bundles/canary", {})],
        {"tiny": [ONE]},
    ),
    (
        "a canary that was promoted",
        [("canary", {"bundle": "two", "percent": 30}), ("activate", {"bundle": "two"})],
        {"tiny": [TWO]},
    ),
    ("the way back", [("activate", {"bundle": "two"}), ("rollback", {})], {"tiny": [ONE]}),
    (
        "a model that went",
        [("activate", {"bundle": "other"}), ("DELETE models/other", {})],
        {"tiny": [ONE]},
    ),
]


async def change(service: Running, verb: str, body: dict[str, object]) -> None:
    if verb.startswith("DELETE"):
        path = f"/admin/{verb.removeprefix('DELETE ')}"
        done = await service.client.delete(path, headers=ADMIN)
    else:
        done = await admin(service, verb, **body)
    assert done.status_code == 200, done.text


@pytest.mark.parametrize(("steps", "served"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
async def test_a_change_told_to_one_worker_reaches_the_other_and_outlives_both(
    root: Path, state: Path, steps: list[tuple[str, dict[str, object]]], served: Served
) -> None:
    async with (
        serving_root(root, state_dir=state) as first,
        serving_root(root, state_dir=state) as second,
    ):
        for verb, body in steps:
            await change(first, verb, body)
            one_step = await served_by(first, root)
            await until_served(second, root, one_step)
        assert one_step == served
    async with serving_root(root, state_dir=state) as restarted:
        assert await served_by(restarted, root) == served


async def test_the_way_back_is_known_to_workers_that_only_followed(root: Path, state: Path) -> None:
    async with (
        serving_root(root, state_dir=state) as first,
        serving_root(root, state_dir=state) as second,
    ):
        await change(first, "activate", {"bundle": "two"})
        await change(second, "rollback", {})  # it catches up before it changes anything
        assert await served_by(second, root) == {"tiny": [ONE]}
        await until_served(first, root, {"tiny": [ONE]})


async def test_a_refused_change_is_told_to_nobody(root: Path, state: Path) -> None:
    async with serving_root(root, state_dir=state) as service:
        assert (await admin(service, "activate", bundle="broken")).status_code == 422
    assert list(state.glob("serving.json")) == []


async def test_a_pointer_that_moves_is_followed(root: Path) -> None:
    async with serving_root(root, watch_s=0.02) as service:
        assert (await ask(service))["bundle_id"] == bundle_id(root / "one")
        (root / POINTER).write_text("two")
        await until_served(service, root, {"tiny": [TWO]})


async def test_a_pointer_to_a_refused_bundle_is_tried_once_and_followed_on(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "service.serving.follow")
    async with serving_root(root, watch_s=0.02) as service:
        (root / POINTER).write_text("nowhere")  # as between two bundles: no fault
        (root / POINTER).write_text("broken")

        async def tried() -> bool:
            return "cannot follow" in [record.message for record in caplog.records]

        await until(tried)
        assert await served_by(service, root) == {"tiny": [ONE]}
        (root / POINTER).write_text("two")
        await until_served(service, root, {"tiny": [TWO]})
    assert [r.message for r in caplog.records].count("cannot follow") == 1
    assert await service.metric('astrolabe_bundle_swap_total{result="failed"}') == 1


async def test_what_was_chosen_is_left_where_the_settings_mean_another_bundle(
    root: Path, state: Path
) -> None:
    async with serving_root(root, state_dir=state) as service:
        await change(service, "activate", {"bundle": "other"})
    (root / POINTER).write_text("two")
    async with serving_root(root, state_dir=state) as service:
        assert await served_by(service, root) == {"tiny": [TWO]}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "does not say which bundles to serve"),
        ('{"configured": "CONFIGURED", "models": {"tiny": {"bundle": "/nowhere"}}}', "/nowhere"),
    ],
)
async def test_a_state_that_cannot_be_followed_leaves_the_configured_bundle(
    root: Path, state: Path, caplog: pytest.LogCaptureFixture, text: str, why: str
) -> None:
    text = text.replace("CONFIGURED", str((root / "one").resolve()))
    (state / "serving.json").write_text(text)
    async with serving_root(root, state_dir=state) as service:
        assert await served_by(service, root) == {"tiny": [ONE]}
    [record] = [record for record in caplog.records if record.message == "cannot follow"]
    assert why in json.dumps(record.__dict__["fields"])
