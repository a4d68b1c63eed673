"""With keys set, no way leads an unsigned bundle into the service.

Every way in is tried with every state of a signature: the next way, or the next state, is one line.
"""

import asyncio
import contextlib
import io
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.bundle.manifest import POINTER
from service.check import main as check
from service.errors import BundleError, BundleUnsigned, SettingsInvalid
from service.process.serve import open_engines
from service.serving.desired import Desired, DesiredModel, write_desired
from tests.support.bundle_root import ADMIN, admin, ask, bundle_id, serving_root
from tests.support.fakes import SAFETY_S, Running, fake_settings
from tests.support.processes import run_service
from tests.support.signing import REFUSED, TAKEN, Scene

pytestmark = pytest.mark.anyio

CPU, THREADS = ("--device", "cpu"), ("--intra-op-threads", "2")

Attempt = Callable[[], Awaitable[str | None]]
"""Let the scene's bundle in by one way: the code of the refusal, or None where it got in."""
Way = Callable[[Scene], AbstractAsyncContextManager[Attempt]]


@pytest.fixture
def scene(tiny_bundle: Path, tmp_path: Path) -> Scene:
    scene = Scene(tiny_bundle, tmp_path)
    scene.old.sign(scene.other)
    (scene.root / POINTER).write_text("other")
    return scene


def opening(arguments: Callable[[Scene], dict[str, Any]]) -> Way:
    """A start with these settings."""

    @asynccontextmanager
    async def way(scene: Scene) -> AsyncIterator[Attempt]:
        async def attempt() -> str | None:
            try:
                open_engines(
                    fake_settings(device="cpu", bundle_keys=scene.trusted, **arguments(scene))
                )
            except BundleError as exc:
                return exc.code
            return None

        yield attempt

    return way


@asynccontextmanager
async def by_check(scene: Scene) -> AsyncIterator[Attempt]:
    async def attempt() -> str | None:
        keys = ",".join(map(str, scene.trusted))
        with contextlib.redirect_stderr(io.StringIO()) as error:
            code = check([str(scene.bundle), *CPU, "--bundle-keys", keys])
        return error.getvalue().split(": ")[1] if code else None

    yield attempt


async def asked_of_admin(service: Running, verb: str, **body: object) -> str | None:
    answer = await admin(service, verb, **body)
    if answer.status_code == 200:
        return None
    assert (answer.status_code, answer.json()["code"]) == (422, "bundle_refused")
    return str(answer.json()["detail"]).partition(":")[0]


def by_admin(verb: str, **body: object) -> Way:
    """An admin request that names the bundle."""

    @asynccontextmanager
    async def way(scene: Scene) -> AsyncIterator[Attempt]:
        async with serving_root(scene.root, bundle_keys=scene.trusted) as service:
            yield lambda: asked_of_admin(service, verb, bundle=scene.bundle.name, **body)

    return way


@asynccontextmanager
async def by_rollback(scene: Scene) -> AsyncIterator[Attempt]:
    """The previous bundle's folder changed while it was not served."""
    scene.make_bundle("previous")
    scene.old.sign(scene.bundle)
    async with serving_root(scene.root, bundle_keys=scene.trusted) as service:
        for name in ("previous", "other"):
            assert await asked_of_admin(service, "activate", bundle=name) is None

        async def attempt() -> str | None:
            shutil.rmtree(scene.root / "previous")
            scene.bundle.rename(scene.root / "previous")
            return await asked_of_admin(service, "rollback")

        yield attempt


async def followed(service: Running, scene: Scene, n_failed: float) -> str | None:
    """Wait until the scene's bundle answers, or was refused once more and does not answer."""
    before = (await ask(service))["bundle_id"]
    async with asyncio.timeout(SAFETY_S):
        while (await ask(service))["bundle_id"] != bundle_id(scene.bundle):
            if await failures(service) > n_failed:
                assert (await ask(service))["bundle_id"] == before
                return await asked_of_admin(service, "activate", bundle=scene.bundle.name)
            await asyncio.sleep(0.01)
    return None


async def failures(service: Running) -> float:
    return await service.metric('astrolabe_bundle_swap_total{result="failed"}')


@asynccontextmanager
async def by_pointer(scene: Scene) -> AsyncIterator[Attempt]:
    """A training job moves the pointer."""
    values = {"bundle_keys": scene.trusted, "watch_s": 0.01}
    async with serving_root(scene.root, **values) as service:

        async def attempt() -> str | None:
            n_failed = await failures(service)
            (scene.root / POINTER).write_text(scene.bundle.name)
            return await followed(service, scene, n_failed)

        yield attempt


def choose(scene: Scene) -> Path:
    """A state folder in which a worker that trusts everybody has recorded the scene's bundle."""
    state = scene.root.parent / "state"
    state.mkdir(exist_ok=True)
    write_desired(state, Desired(str(scene.other), {"tiny": DesiredModel(str(scene.bundle))}))
    return state


@asynccontextmanager
async def by_another_worker(scene: Scene) -> AsyncIterator[Attempt]:
    state = scene.root.parent / "state"
    state.mkdir()
    values = {"bundle_keys": scene.trusted, "state_dir": state}
    async with serving_root(scene.root, **values) as service:

        async def attempt() -> str | None:
            n_failed = await failures(service)
            choose(scene)
            return await followed(service, scene, n_failed)

        yield attempt


WAYS: dict[str, Way] = {
    "start": opening(lambda scene: {"bundle": scene.bundle}),
    "more bundles": opening(lambda s: {"bundle": s.other, "more_bundles": (s.bundle,)}),
    "service.check": by_check,
    "activate": by_admin("activate"),
    "canary": by_admin("canary", percent=50),
    "rollback": by_rollback,
    "the pointer moves": by_pointer,
    "another worker was told": by_another_worker,
}


@pytest.mark.parametrize("way", WAYS)
async def test_no_way_leads_an_unsigned_bundle_in(scene: Scene, way: str) -> None:
    codes = {}
    async with WAYS[way](scene) as attempt:
        for state, (act, _) in REFUSED.items():
            scene.make_bundle()
            act(scene)
            codes[state] = await attempt()
    assert codes == dict.fromkeys(REFUSED, BundleUnsigned.code)


@pytest.mark.parametrize("state", ["by the new key", "wrong by one, right by the other"])
@pytest.mark.parametrize("way", WAYS)
async def test_every_way_takes_a_signed_bundle(scene: Scene, way: str, state: str) -> None:
    async with WAYS[way](scene) as attempt:
        scene.make_bundle()
        TAKEN[state](scene)
        assert await attempt() is None


async def test_a_restart_does_not_go_on_with_an_unsigned_choice(scene: Scene) -> None:
    values = {"bundle_keys": scene.trusted, "state_dir": choose(scene)}
    async with serving_root(scene.root, **values) as service:
        assert await followed(service, scene, 0) == BundleUnsigned.code


async def test_a_key_is_withdrawn_without_a_restart(scene: Scene, tmp_path: Path) -> None:
    keys = tmp_path / "keys.pem"
    keys.write_bytes(b"".join(path.read_bytes() for path in scene.trusted))
    async with serving_root(scene.root, bundle_keys=(keys,)) as service:
        scene.new.sign(scene.bundle)
        name = scene.bundle.name
        assert await asked_of_admin(service, "canary", bundle=name, percent=5) is None
        await service.client.delete("/admin/bundles/canary", headers=ADMIN)
        keys.write_bytes(scene.old.public.read_bytes())
        assert await asked_of_admin(service, "activate", bundle=name) == BundleUnsigned.code
        keys.write_text("")
        assert await asked_of_admin(service, "activate", bundle=name) == SettingsInvalid.code


# Workers open the bundle themselves where encoder calls have threads, else their master does.
@pytest.mark.slow
@pytest.mark.parametrize("workers", [(), ("--workers", "2"), ("--workers", "2", *THREADS)])
def test_processes_refuse_to_start(scene: Scene, workers: tuple[str, ...]) -> None:
    keys = ("--bundle-keys", str(scene.old.public))
    done = run_service("--bundle", str(scene.bundle), "--port", "0", *keys, *CPU, *workers)
    assert done.returncode == 1
    assert "is not signed" in done.stderr
    assert "Traceback" not in done.stderr
