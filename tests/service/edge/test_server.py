import asyncio
import os
import select
import signal
import socket

import httpx
import pytest

from tests.support.live import served
from tests.support.raw_http import recommend

pytestmark = pytest.mark.anyio


async def test_sigterm_turns_readiness_red_then_finishes_what_is_in_flight() -> None:
    async with served(drain_delay_s=60.0) as run:
        run.predict.hold()
        in_flight = run.ask()
        await run.predict.wait_entered()
        os.kill(os.getpid(), signal.SIGTERM)
        while (await run.client.get("/readyz")).status_code == 200:
            pass
        accepted_late = run.ask()  # red, yet still answering
        os.kill(os.getpid(), signal.SIGTERM)  # no need to wait for the delay in a test
        run.predict.release()
        assert (await in_flight).status_code == 200
        assert (await accepted_late).status_code == 200
        assert (await in_flight).headers["connection"] == "close"
        await run.ended


ENDING = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


@pytest.mark.parametrize("which", ENDING)
async def test_every_signal_that_would_end_the_process_drains_it(which: signal.Signals) -> None:
    async with served() as run:
        run.predict.hold()
        in_flight = run.ask()
        await run.predict.wait_entered()
        os.kill(os.getpid(), which)
        while (await run.client.get("/readyz")).status_code == 200:
            pass
        run.predict.release()
        assert (await in_flight).status_code == 200
        await run.ended


async def test_metrics_that_break_end_neither_the_server_nor_an_answer() -> None:
    async with served() as run:

        def broken() -> None:
            raise OSError(28, "No space left on device")

        run.app.serving.telemetry.watch(queue_tokens=broken)
        run.app.serving.telemetry.tick = broken  # type: ignore[method-assign]
        healthy = run.app.serving.telemetry.background.healthy
        while healthy()["show-metrics"]:
            assert (await run.ask()).status_code == 200
        assert (await run.client.get("/readyz")).status_code == 200


async def test_a_signal_does_again_what_it_did_before_once_the_drain_is_over() -> None:
    def end(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, end)
    try:
        async with served(drain_delay_s=0.0) as run:
            run.server.on_signal()
            await run.ended
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_the_delay_ends_by_itself() -> None:
    async with served(drain_delay_s=0.0) as run:
        run.server.on_signal()
        await run.ended
        with pytest.raises(httpx.ConnectError):
            await run.client.get("/livez")


async def test_what_does_not_finish_in_time_is_answered_503() -> None:
    async with served(drain_timeout_s=0.0) as run:
        run.predict.hold()
        stuck = run.ask()
        await run.predict.wait_entered()
        run.server.on_signal()
        answer = await stuck
        assert (answer.status_code, answer.json()["code"]) == (503, "shutting_down")
        await run.ended


async def test_client_that_hangs_up_is_noticed_through_the_real_server() -> None:
    async with served() as run:
        run.predict.hold()
        busy = run.ask()
        await run.predict.wait_entered()
        host, port = run.client.base_url.host, run.client.base_url.port
        _, writer = await asyncio.open_connection(host, port)
        writer.write(recommend("leaver"))
        batcher = run.batcher
        while not batcher.waiting_tokens:
            await asyncio.sleep(0.001)
        writer.close()
        left = 'astrolabe_request_seconds_count{route="/v1/recommend",status="499"}'
        while not await run.metric(left):
            pass
        run.predict.release()
        assert (await busy).status_code == 200
    assert run.predict.texts() == ["a"]


async def test_third_signal_cuts_everything_short() -> None:
    async with served(drain_delay_s=60.0, drain_timeout_s=60.0) as run:
        run.predict.hold()
        stuck = run.ask()
        await run.predict.wait_entered()
        for _ in range(3):
            run.server.on_signal()
        assert (await stuck).status_code == 503
        await run.ended


async def test_a_worker_that_ends_alone_stays_ready_and_sends_its_clients_elsewhere() -> None:
    async with served(drain_delay_s=60.0, all_stop=lambda: False) as run:
        assert "connection" not in (await run.client.get("/readyz")).headers
        run.server.on_signal()
        ready = await run.client.get("/readyz")
        assert (ready.status_code, ready.headers["connection"]) == (200, "close")
        run.server.on_signal()
        await run.ended


@pytest.mark.parametrize("others_serve", [True, False])
async def test_a_worker_that_ends_alone_leaves_new_connections_to_the_others(
    others_serve: bool,
) -> None:
    async with served(all_stop=lambda: not others_serve) as run:
        with run.listener.dup() as other:  # what another worker would listen on
            run.server.on_signal()
            await run.ended
            with socket.socket() as client:
                client.setblocking(False)
                client.connect_ex(other.getsockname())
                made = bool(select.select([], [client], [], 0)[1])
    assert made is others_serve
