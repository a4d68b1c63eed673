"""Shedding: what is refused unread, and on what grounds; the connection goes on."""

import asyncio
from collections.abc import Sequence

import pytest

from service.errors import AstrolabeError, InvalidValue, OverloadError, QueueFull, ShuttingDown
from service.overload.shedding import ARMED_S, PATH, Shedding
from tests.support.fakes import SAFETY_S, FakeClock
from tests.support.live import served
from tests.support.overload import SMALL, hears_refusal, overload
from tests.support.raw_http import RECOMMEND, raw, recommend

pytestmark = pytest.mark.anyio

DEFAULT_S = 2.0


class Door:
    """A shedding over a batcher that lets in so many requests, and notes what it was asked."""

    def __init__(self, room: int = 0, error: AstrolabeError | None = None) -> None:
        self.room = room
        self.error = error or QueueFull("full", retry_after_s=1.0)
        self.asked: list[tuple[float, bool]] = []
        self.counted: list[str] = []
        self.clock = FakeClock()
        self.shedding = Shedding(self.clock, DEFAULT_S, self._ask, self._count)

    def refused(self, *headers: tuple[bytes, bytes], unread_s: float = 0.0) -> bool:
        return self.shedding.refusal(PATH, headers, unread_s) is not None

    def _ask(self, deadline_s: float, bulk: bool, others: int) -> AstrolabeError | None:
        self.asked.append((deadline_s - self.clock.now, bulk))
        return self.error if others >= self.room else None

    def _count(self, error: OverloadError) -> None:
        self.counted.append(error.code)


def test_connections_judge_for_a_while_after_each_refusal() -> None:
    door = Door()
    assert not door.shedding.armed
    door.shedding.arm(QueueFull("full"))
    door.clock.advance(0.9 * ARMED_S)
    assert door.shedding.armed
    assert door.refused()
    assert door.counted == ["queue_full"]
    door.clock.advance(0.9 * ARMED_S)
    assert door.shedding.armed
    door.clock.advance(0.1 * ARMED_S)
    assert not door.shedding.armed


def test_other_errors_arm_nothing() -> None:
    door = Door()
    door.shedding.arm(InvalidValue("k"))
    assert not door.shedding.armed


@pytest.mark.parametrize(
    ("headers", "unread_s", "budget_s", "bulk"),
    [
        ([], 0.0, DEFAULT_S, False),
        ([(b"x-request-timeout-ms", b"500")], 0.0, 0.5, False),
        ([(b"x-request-timeout-ms", b"500")], 0.2, 0.3, False),
        ([(b"x-request-priority", b"bulk")], 0.0, DEFAULT_S, True),
        ([(b"x-request-priority", b"interactive")], 0.0, DEFAULT_S, False),
    ],
)
def test_the_batcher_is_asked_with_what_is_left_of_the_deadline(
    headers: Sequence[tuple[bytes, bytes]], unread_s: float, budget_s: float, bulk: bool
) -> None:
    door = Door()
    assert door.refused(*headers, unread_s=unread_s)
    assert door.asked == [(pytest.approx(budget_s), bulk)]


def test_who_was_not_read_before_the_deadline_is_refused_without_a_question() -> None:
    door = Door(room=1)
    assert door.refused(unread_s=DEFAULT_S)
    assert (door.asked, door.counted) == ([], ["deadline_unreachable"])


async def test_what_one_turn_of_the_loop_lets_through_counts_as_waiting() -> None:
    door = Door(room=2)
    assert [door.refused() for _ in range(4)] == [False, False, True, True]
    await asyncio.sleep(0)
    assert not door.refused()


@pytest.mark.parametrize(
    ("url", "headers"), [(b"/readyz", []), (PATH, [(b"x-request-timeout-ms", b"soon")])]
)
def test_what_is_none_of_its_business_goes_on(
    url: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    door = Door()
    assert door.shedding.refusal(url, headers, 0.0) is None
    assert door.asked == []


async def test_a_service_that_ends_answers_by_the_gate() -> None:
    assert not Door(error=ShuttingDown("bye")).refused()


async def test_a_request_shed_leaves_the_connection_usable() -> None:
    async with served(**SMALL) as run, raw(run) as client:
        waiting = await overload(run)
        ids = set()
        for _ in range(2):
            await client.says(recommend()[:40])
            await client.says(recommend()[40:])
            ids.add(await hears_refusal(client))
        assert len(ids) == 2
        assert await run.rejected("queue_full") == 3
        run.predict.release()
        async with asyncio.timeout(SAFETY_S):
            await asyncio.gather(*waiting)
        await client.says(recommend())
        assert (await client.hears())[0] == 200
        await client.says(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert (await client.hears())[0] == 200


@pytest.mark.parametrize("expect", [b"", b"expect: 100-continue\r\n"])
@pytest.mark.parametrize("framing", [b"content-length: 14\r\n", b"transfer-encoding: chunked\r\n"])
async def test_a_request_whose_body_does_not_come_is_shed_at_once(
    framing: bytes, expect: bytes
) -> None:
    async with served(**SMALL) as run, raw(run) as client:
        waiting = await overload(run)
        await client.says(RECOMMEND + framing + expect + b"\r\n1")
        await hears_refusal(client)
        client.writer.close()
        run.predict.release()
        await asyncio.gather(*waiting)
