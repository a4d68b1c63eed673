"""Following: a process serves what another one was told, and what a pointer says.

Each `serving_root` here stands for one worker; workers of a machine share a state folder.
"""

import asyncio
import errno
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from service.bundle.manifest import POINTER
from service.serving.deployment import open_changed_engine
from tests.support.bundle_root import ADMIN, admin, ask, bundle_id, reseal, serving_root
from tests.support.fakes import SAFETY_S, Running, fake_settings, running
from tests.support.faults import FAULTS_OF_A_FOLDER, late_files

pytestmark = pytest.mark.anyio

Served = dict[str, list[tuple[str, str, float]]]
"""Model to (folder of the bundle, role, canary's share) of what is open."""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


async def served_by(service: Running, root: Path) -> Served:
    models = (await service.client.get("/v1/models")).json()["models"]
    names = {
        bundle_id(root / name): name
        for name in ("one", "two", "other")
        if (root / name / "manifest.json").exists()
    }
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


async def change(service: Running, verb: str, body: dict[str, object], status: int = 200) -> None:
    if verb.startswith("DELETE"):
        path = f"/admin/{verb.removeprefix('DELETE ')}"
        done = await service.client.delete(path, headers=ADMIN)
    else:
        done = await admin(service, verb, **body)
    assert done.status_code == status, done.text


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


async def test_a_worker_opens_nothing_that_its_master_may_hold_but_to_change_it(
    root: Path, state: Path
) -> None:
    async with (
        serving_root(root, state_dir=state) as first,
        serving_root(root, hold=("one", "other"), state_dir=state) as second,
    ):
        await change(first, "activate", {"bundle": "two"})
        await change(first, "activate", {"bundle": "other"})
        await until_served(second, root, {"tiny": [ONE], "other": [OTHER]})
        await change(second, "canary", {"bundle": "one", "percent": 3})
        served = {"tiny": [TWO, ("one", "canary", 3)], "other": [OTHER]}
        assert await served_by(second, root) == served
        await until_served(first, root, served)


async def test_a_worker_catches_up_with_the_pointer_before_it_makes_a_change(
    root: Path, state: Path
) -> None:
    async with serving_root(root, hold=("one",), state_dir=state, watch_s=0.02) as service:
        (root / POINTER).write_text("two")
        await change(service, "activate", {"bundle": "other"})
        assert await served_by(service, root) == {"tiny": [TWO], "other": [OTHER]}
    assert json.loads((state / "serving.json").read_text())["configured"] == str(root / "two")


async def test_a_refused_change_is_told_to_nobody(root: Path, state: Path) -> None:
    async with serving_root(root, state_dir=state) as service:
        assert (await admin(service, "activate", bundle="broken")).status_code == 422
    assert list(state.glob("serving.json")) == []


async def test_a_pointer_that_moves_is_followed(root: Path) -> None:
    async with serving_root(root, watch_s=0.02) as service:
        assert (await ask(service))["bundle_id"] == bundle_id(root / "one")
        (root / POINTER).write_text("two")
        await until_served(service, root, {"tiny": [TWO]})


def faults_logged(caplog: pytest.LogCaptureFixture, task: str) -> list[logging.LogRecord]:
    records = [r for r in caplog.records if r.message == "a background task fails"]
    return [r for r in records if r.__dict__["fields"]["task"] == task]


async def until_failing(service: Running, task: str, times: int = 1) -> None:
    async def failing() -> bool:
        sample = f'astrolabe_background_errors_total{{task="{task}"}}'
        return await service.metric(sample) >= times

    await until(failing)
    assert await service.metric(f'astrolabe_background_healthy{{task="{task}"}}') == 0


async def until_healthy(service: Running, task: str) -> None:
    async def healthy() -> bool:
        return await service.metric(f'astrolabe_background_healthy{{task="{task}"}}') == 1

    await until(healthy)


async def test_a_pointer_to_a_refused_bundle_is_logged_once_and_followed_on(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving_root(root, watch_s=0.02) as service:
        (root / POINTER).write_text("broken")
        await until_failing(service, "follow-pointer", times=3)
        assert await served_by(service, root) == {"tiny": [ONE]}
        (root / POINTER).write_text("two")
        await until_served(service, root, {"tiny": [TWO]})
        await until_healthy(service, "follow-pointer")
    assert len(faults_logged(caplog, "follow-pointer")) == 1


LATE: dict[str, tuple[str, ...]] = {
    "the whole folder": (),
    "all but the manifest": ("labels.jsonl", "labels.offsets.npy", "tokenizer.json"),
    "the manifest": ("manifest.json",),
    "one file": ("labels.jsonl",),
}


@pytest.mark.parametrize("names", LATE.values(), ids=LATE)
async def test_files_that_arrive_after_the_pointer_are_served(
    root: Path, names: tuple[str, ...]
) -> None:
    async with serving_root(root, watch_s=0.02) as service:
        with late_files(root / "two", *names):
            (root / POINTER).write_text("two")
            await until_failing(service, "follow-pointer", times=2)
        await until_served(service, root, {"tiny": [TWO]})
        await until_healthy(service, "follow-pointer")


async def test_a_pointer_written_anew_with_the_same_text_is_tried_at_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.background.FIRST_PAUSE_S", 3600.0)
    monkeypatch.setattr("service.background.LONGEST_PAUSE_S", 3600.0)
    async with serving_root(root, watch_s=0.02) as service:
        with late_files(root / "two", "labels.jsonl"):
            (root / POINTER).write_text("two")
            await until_failing(service, "follow-pointer")
        (root / POINTER).write_text("two")
        await until_served(service, root, {"tiny": [TWO]})


async def test_a_bundle_put_in_place_of_the_one_that_is_served_is_opened(root: Path) -> None:
    replacement = bundle_id(root / "two")
    async with serving_root(root, watch_s=0.02) as service:
        (root / "one").rename(root / "old")
        (root / "two").rename(root / "one")
        (root / POINTER).write_text("one")

        async def served() -> bool:
            return bool((await ask(service))["bundle_id"] == replacement)

        await until(served)


async def test_a_worker_that_starts_after_the_pointer_moved_follows_it(root: Path) -> None:
    settings = fake_settings(bundle=root, device="cpu", watch_s=0.02)
    engine = open_changed_engine(root, settings)  # as the master did, long ago
    (root / POINTER).write_text("two")
    async with running(engine=engine, bundle=root, device="cpu", watch_s=0.02) as service:
        await until_served(service, root, {"tiny": [TWO]})


@pytest.mark.parametrize("fault", FAULTS_OF_A_FOLDER.values(), ids=FAULTS_OF_A_FOLDER)
async def test_a_pointer_is_followed_once_the_state_folder_can_be_written_again(
    root: Path, state: Path, fault: Callable[[Path], AbstractContextManager[None]]
) -> None:
    async with serving_root(root, state_dir=state, watch_s=0.02) as service:
        with fault(state):
            (root / POINTER).write_text("two")
            await until_failing(service, "follow-pointer", times=2)
            assert await served_by(service, root) == {"tiny": [ONE]}
        await until_served(service, root, {"tiny": [TWO]})
        await until_healthy(service, "follow-pointer")


@pytest.mark.parametrize("fault", FAULTS_OF_A_FOLDER.values(), ids=FAULTS_OF_A_FOLDER)
async def test_a_change_that_cannot_be_recorded_is_in_force_nowhere(
    root: Path, state: Path, fault: Callable[[Path], AbstractContextManager[None]]
) -> None:
    async with (
        serving_root(root, state_dir=state) as first,
        serving_root(root, state_dir=state) as second,
    ):
        with fault(state):
            refused = await admin(first, "activate", bundle="two")
            assert (refused.status_code, refused.json()["code"]) == (503, "state_unavailable")
            assert await served_by(first, root) == {"tiny": [ONE]}
        assert (await admin(second, "activate", bundle="other")).status_code == 200
        await until_served(first, root, {"tiny": [ONE], "other": [OTHER]})
        assert (await admin(first, "activate", bundle="two")).status_code == 200
        await until_served(second, root, {"tiny": [TWO], "other": [OTHER]})


EVERY_CHANGE: dict[str, tuple[str, dict[str, object]]] = {
    "another bundle": ("POST bundles/activate", {"bundle": "one"}),
    "one more model": ("POST bundles/activate", {"bundle": "other"}),
    "a canary": ("POST bundles/canary", {"bundle": "other_tiny", "percent": 5}),
    "a canary's share": ("POST bundles/canary", {"bundle": "third", "percent": 5}),
    "a canary's end": ("DELETE bundles/canary", {}),
    "the way back": ("POST bundles/rollback", {}),
    "a model's end": ("DELETE models/more", {}),
}


@pytest.mark.parametrize(("verb", "body"), EVERY_CHANGE.values(), ids=EVERY_CHANGE)
async def test_no_kind_of_change_is_in_force_before_it_is_recorded(
    root: Path, state: Path, verb: str, body: dict[str, object]
) -> None:
    reseal(root / "one", root / "third", created="2026-03-03T00:00:00Z")
    reseal(root / "one", root / "other_tiny", created="2026-04-04T00:00:00Z")
    reseal(root / "one", root / "more", name="more")
    method, path = verb.split()
    content: dict[str, Any] = {"json": body} if method == "POST" else {}
    async with serving_root(root, state_dir=state) as service:
        for setup in ({"bundle": "two"}, {"bundle": "more"}):
            assert (await admin(service, "activate", **setup)).status_code == 200
        assert (await admin(service, "canary", bundle="third", percent=50)).status_code == 200
        before = (await service.client.get("/v1/models")).json()
        with FAULTS_OF_A_FOLDER["full"](state):
            refused = await service.client.request(
                method, f"/admin/{path}", headers=ADMIN, **content
            )
            assert (refused.status_code, refused.json()["code"]) == (503, "state_unavailable")
        assert (await service.client.get("/v1/models")).json() == before
        done = await service.client.request(method, f"/admin/{path}", headers=ADMIN, **content)
        assert done.status_code == 200, done.text
        assert (await service.client.get("/v1/models")).json() != before


async def test_a_choice_that_was_flushed_too_late_is_in_force_as_others_read_it(
    root: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving_root(root, state_dir=state) as service:
        monkeypatch.setattr("service.atomic.sync", refuse_folders)
        assert (await admin(service, "activate", bundle="two")).status_code == 200
        assert await served_by(service, root) == {"tiny": [TWO]}
    assert "two" in (state / "serving.json").read_text()


def refuse_folders(path: Path) -> None:
    if path.is_dir():
        raise OSError(errno.EIO, "Input/output error")


async def test_a_bundle_that_is_late_for_a_follower_is_served_once_it_is_there(
    root: Path, state: Path
) -> None:
    async with serving_root(root, state_dir=state) as first:
        await change(first, "activate", {"bundle": "other"})
        await change(first, "activate", {"bundle": "two"})
        with late_files(root / "two", "labels.jsonl"):
            async with serving_root(root, state_dir=state) as second:
                await until_failing(second, "follow-choice")
                # One bundle that is late keeps no other back, and no admin out.
                assert await served_by(second, root) == {"tiny": [ONE], "other": [OTHER]}
                await change(second, "canary", {"bundle": "one", "percent": 3}, status=422)
        async with serving_root(root, state_dir=state) as second:
            await until_served(second, root, {"tiny": [TWO], "other": [OTHER]})


async def test_labels_are_followed_whatever_befalls_another_model_or_the_choice(
    root: Path, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving_root(root, state_dir=state) as service:
        await change(service, "activate", {"bundle": "other"})
        catalogue = service.app.serving.default.engine.catalogue
        polled = asyncio.Event()

        def broken() -> bool:
            raise RuntimeError("a bug")

        other = service.app.serving.deployments.slot("other").current.engine.catalogue
        loop = asyncio.get_running_loop()
        catalogue.poll = broken
        other.poll = lambda: loop.call_soon_threadsafe(polled.set)
        (state / "serving.json").write_text("{")
        await until_failing(service, "follow-labels")
        await until_failing(service, "follow-choice")
        polled.clear()
        async with asyncio.timeout(SAFETY_S):
            await polled.wait()
        del catalogue.poll
        await until_healthy(service, "follow-labels")
    [record] = faults_logged(caplog, "follow-labels")
    assert record.exc_info


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
    [record] = faults_logged(caplog, "follow-choice")
    assert why in json.dumps(record.__dict__["fields"])
