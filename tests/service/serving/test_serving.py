from collections.abc import Callable
from pathlib import Path

import pytest

from service.bundle.manifest import MANIFEST
from service.errors import NotReady, ShuttingDown
from service.serving.deployment import GPU_LANES, auto_lanes
from tests.support.bundle_root import admin, serving_root
from tests.support.fakes import FakeClock, FakePredict, running


@pytest.mark.parametrize(
    ("device", "threads", "lanes"),
    [("cpu", 1, 6), ("cpu", 2, 3), ("cpu", 4, 1), ("cpu", 9, 1), ("cuda", 1, GPU_LANES)],
)
def test_lanes_follow_the_cpus_or_the_device(
    monkeypatch: pytest.MonkeyPatch, device: str, threads: int, lanes: int
) -> None:
    monkeypatch.setattr("service.serving.deployment.usable_cpus", lambda: 6)
    assert auto_lanes(device, threads) == lanes


@pytest.mark.anyio
async def test_readiness_is_the_truth_about_the_batcher() -> None:
    async with running() as service:
        serving = service.app.serving
        serving.check_ready()
        await serving.default.batcher.drain(0.0)
        with pytest.raises(NotReady, match="died"):
            serving.check_ready()
        serving.draining = True
        with pytest.raises(ShuttingDown):
            serving.check_ready()


@pytest.mark.anyio
async def test_draining_twice_drains_once() -> None:
    async with running() as service:
        await service.app.serving.drain()
        await service.app.serving.drain()
    assert service.app.serving.draining


@pytest.mark.anyio
async def test_a_deep_probe_has_a_text_answered_once_a_second() -> None:
    clock, predict = FakeClock(), FakePredict()
    async with running(predict, clock=clock) as service:
        assert (await service.client.get("/readyz")).status_code == 200
        assert predict.texts() == []
        for _ in range(3):
            assert (await service.client.get("/readyz?deep=true")).status_code == 200
        assert predict.texts() == ["ready"]
        clock.advance(2)
        predict.error = RuntimeError("the device is gone")
        failed = await service.client.get("/readyz?deep=true")
        assert (failed.status_code, failed.json()["code"]) == (500, "predict_failed")
        assert (await service.client.get("/readyz")).status_code == 200


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:  # in place and of the same length, as a wrong copy would
        file.write(b"#" * path.stat().st_size)


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"#")


def touch(path: Path) -> None:
    path.touch()


def replace(path: Path) -> None:
    aside = path.with_suffix(".new")
    aside.write_bytes(b"#")
    aside.replace(path)


CHANGES: dict[str, tuple[Callable[[Path], None], int]] = {
    "overwritten": (overwrite, 503),
    "cut": (cut, 503),
    "longer": (lengthen, 503),
    "touched": (touch, 200),
    "replaced by renaming": (replace, 200),
    "deleted": (Path.unlink, 200),
}


@pytest.mark.anyio
@pytest.mark.parametrize(("change", "status"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("bundle", ["one", "other"])
async def test_a_deep_probe_sees_a_file_that_was_changed_under_any_open_bundle(
    root: Path,
    bundle: str,
    change: Callable[[Path], None],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.serving.serving.DEEP_TIMEOUT_S", 60.0)  # a busy machine meets it
    clean = 200
    for path in sorted((root / bundle).iterdir()):
        if path.name == MANIFEST:
            continue  # read once, when the bundle is opened
        content = path.read_bytes()
        async with serving_root(root) as service:
            assert (await admin(service, "activate", bundle="other")).status_code == 200
            assert (await service.client.get("/readyz?deep=true")).status_code == clean
            service.app.serving.clock = lambda: 1e9  # a second later
            change(path)
            probe = await service.client.get("/readyz?deep=true")
            assert probe.status_code == status, (path.name, probe.text)
            if status != clean:
                assert path.name in probe.json()["detail"]
                assert str(root) not in probe.text
            assert (await service.client.get("/readyz")).status_code == 200
        path.write_bytes(content)
