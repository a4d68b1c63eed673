import pytest

from service.errors import NotReady, ShuttingDown
from service.serving.deployment import GPU_LANES, auto_lanes
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
