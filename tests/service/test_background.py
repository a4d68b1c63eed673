"""Background work: whatever it raises, it is logged once, counted, and goes on."""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from service import background as module
from service.background import EVENT_LOOP, STUCK_S, Background, LastResort, end
from service.errors import CatalogueUnavailable
from tests.support.fakes import SAFETY_S, FakeClock

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.002)


class Fails:
    """Raises these errors one after the other, then works; `calls` counts."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0
        self.worked = asyncio.Event()

    async def __call__(self) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        self.worked.set()


ERRORS: dict[str, BaseException] = {
    "a bug": ValueError("broken"),
    "a full disk": OSError(28, "No space left on device"),
    "a recursion": RecursionError("too deep"),
    "no memory": MemoryError(),
    "a foreseen fault": CatalogueUnavailable("locked"),
    "a cancellation from within": asyncio.CancelledError(),
    "a time-out": TimeoutError(),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
async def test_a_task_outlives_whatever_it_raises(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "service.background")
    counted: Counter[str] = Counter()
    background = Background(lambda task: counted.update([task]))
    work = Fails(error, error, error)
    task = background.repeat("look", work, 0.001)
    async with asyncio.timeout(SAFETY_S):
        await work.worked.wait()
    await end([task])
    assert counted == {"look": 3}
    assert background.healthy() == {"look": True}
    [record] = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.__dict__["fields"]["task"] == "look"
    assert bool(record.exc_info) != isinstance(error, CatalogueUnavailable)
    assert [r.message for r in caplog.records][-1] == "a background task works again"


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
async def test_a_thread_outlives_whatever_it_raises(error: BaseException) -> None:
    errors, counted = [error, error], Counter[str]()
    background = Background(lambda task: counted.update([task]))

    def body() -> None:
        if errors:
            raise errors.pop()

    thread = background.thread("dig", body)
    await asyncio.to_thread(thread.join, SAFETY_S)
    assert (counted, background.healthy()) == ({"dig": 2}, {"dig": True})


async def test_what_fails_for_good_is_shown() -> None:
    background = Background()
    work = Fails(*(ValueError(str(i)) for i in range(9)))
    async with asyncio.timeout(SAFETY_S):
        await background.once("close", work, tries=3)
    assert (work.calls, background.healthy()) == (3, {"close": False})


async def test_a_run_that_does_not_come_back_is_shown() -> None:
    clock = FakeClock()
    background, begun = Background(clock=clock), asyncio.Event()

    async def hang() -> None:
        begun.set()
        await asyncio.Event().wait()

    task = background.once("hang", hang)
    await begun.wait()
    assert background.healthy() == {"hang": True}
    clock.advance(STUCK_S + 1)
    assert background.healthy() == {"hang": False}
    await end([task])
    assert task.cancelled()


async def test_a_counter_that_breaks_does_not_break_the_last_resort() -> None:
    def broken(_: str) -> None:
        raise OSError("the metrics have no room")

    work = Fails(ValueError())
    async with asyncio.timeout(SAFETY_S):
        await Background(broken).once("look", work)
    assert work.calls == 2


async def test_a_pause_ends_once_the_subject_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 3600.0)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 3600.0)
    stamps, work = [0], Fails(ValueError())
    task = Background().repeat("look", work, 0.001, lambda: stamps[0])
    async with asyncio.timeout(SAFETY_S):
        while not work.calls:
            await asyncio.sleep(0.001)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert work.calls == 1
        stamps[0] += 1
        await work.worked.wait()
    await end([task])


def test_pauses_double_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    resort = LastResort("look", lambda _: None)
    pauses = [resort.failed(ValueError()) for _ in range(200)]
    assert pauses[:4] == [0.25, 0.5, 1.0, 2.0]
    assert set(pauses[8:]) == {30.0}


ON_THE_LOOP: dict[str, Callable[[asyncio.AbstractEventLoop, Callable[[], Any]], Any]] = {
    "a callback": lambda loop, fail: loop.call_soon(fail),
    "a timer": lambda loop, fail: loop.call_later(0.001, fail),
    "a callback from a thread": lambda loop, fail: threading.Thread(
        target=lambda: loop.call_soon_threadsafe(fail)
    ).start(),
}


@pytest.mark.parametrize("start", ON_THE_LOOP.values(), ids=ON_THE_LOOP)
async def test_errors_in_callbacks_are_counted_and_logged_once_a_minute(
    start: Callable[[asyncio.AbstractEventLoop, Callable[[], Any]], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    counted, clock = Counter[str](), FakeClock()
    background = Background(lambda task: counted.update([task]), clock)
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    background.guard_loop(loop)

    def fail() -> None:
        raise ValueError("broken")

    async def fail_until(n: int) -> None:
        start(loop, fail)
        async with asyncio.timeout(SAFETY_S):
            while counted[EVENT_LOOP] < n:
                await asyncio.sleep(0.001)

    try:
        await fail_until(1)
        await fail_until(2)
        assert len(caplog.records) == 1
        clock.advance(61)
        await fail_until(3)
        assert len(caplog.records) == 2
    finally:
        loop.set_exception_handler(before)
