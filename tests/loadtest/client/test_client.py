"""How each kind of ending is recorded, and that every issued query ends exactly once."""

import math
import threading

import pytest

from loadtest.client.client import Client
from loadtest.client.outcomes import count_outcomes
from loadtest.client.recorder import Recorder
from loadtest.plan import StepPlan
from tests.support.fake_service import (
    CLOSE,
    SILENCE,
    Respond,
    always_ok,
    answer,
    fake_service,
    refused_url,
)


def ask(
    url: str, count: int = 1, connections: int = 8, timeout_ms: float = 5000
) -> tuple[Recorder, list[int]]:
    """Send `count` queries at once; returns the record and LoadGen's view of what completed."""
    plan = StepPlan(
        url, rate=100, seconds=1, timeout_ms=timeout_ms, p99_ms=1, connections=connections
    )
    completed: list[int] = []
    all_ended = threading.Event()

    def complete(sample_id: int) -> None:
        completed.append(sample_id)
        if len(completed) == count:
            all_ended.set()

    client = Client(plan, ["a text", "another"], complete)
    client.start()
    try:
        client.issue([(1000 + number, number % 2) for number in range(count)])
        assert all_ended.wait(20)
    finally:
        client.stop()
    return client.recorder, completed


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (answer(), "ok"),
        (answer(429), "http_429"),
        (answer(503), "http_503"),
        (answer(504), "http_504"),
        (answer(kind="text/html"), "bad_answer"),
        (b"this is not HTTP\r\n\r\n", "bad_answer"),
        (CLOSE, "lost"),
    ],
)
def test_each_ending_is_counted_by_its_kind(reply: bytes, outcome: str):
    with fake_service(lambda number, body: reply) as service:
        recorder, completed = ask(service.url)
    assert count_outcomes(recorder.code) == {outcome: 1}
    assert completed == [1000]


def test_no_answer_is_a_timeout():
    with fake_service(lambda number, body: SILENCE) as service:
        recorder, _ = ask(service.url, timeout_ms=20)
    assert count_outcomes(recorder.code) == {"timeout": 1}


def test_refused_connections_are_errors_and_no_crash():
    recorder, completed = ask(refused_url(), count=100)
    assert count_outcomes(recorder.code) == {"refused": 100}
    assert sorted(completed) == list(range(1000, 1100))
    assert math.isnan(recorder.sent_s[0])


def test_a_failure_is_told_to_loadgen_only_after_the_limit():
    with fake_service(lambda number, body: answer(429)) as service:
        plan = StepPlan(service.url, rate=1, seconds=1, p99_ms=300)
        ended = threading.Event()
        client = Client(plan, ["a text"], lambda sample_id: ended.set())
        client.start()
        client.issue([(1, 0)])
        service.asked.wait(20)
        told_at_once = ended.wait(0.05)
        told_in_the_end = ended.wait(20)
        client.stop()
    assert not told_at_once
    assert told_in_the_end


def test_more_queries_than_connections_wait_for_one():
    with fake_service(always_ok) as service:
        recorder, completed = ask(service.url, count=50, connections=2)
        assert service.n_open <= 2
    assert count_outcomes(recorder.code) == {"ok": 50}
    assert len(set(completed)) == 50


def test_a_dropped_connection_is_replaced():
    def every_third_hangs_up(number: int, body: dict[str, object]) -> bytes:
        return CLOSE if number % 3 == 0 else answer()

    respond: Respond = every_third_hangs_up
    with fake_service(respond) as service:
        recorder, _ = ask(service.url, count=30, connections=1)
    assert count_outcomes(recorder.code) == {"ok": 20, "lost": 10}


def test_connection_close_is_obeyed_and_is_no_failure():
    closing = answer().replace(b"Server-Timing", b"Connection: close\r\nServer-Timing")
    with fake_service(lambda number, body: closing) as service:
        recorder, _ = ask(service.url, count=6, connections=2)
    assert count_outcomes(recorder.code) == {"ok": 6}


def test_the_request_says_what_was_asked_for():
    with fake_service(always_ok) as service:
        recorder, _ = ask(service.url, count=2, timeout_ms=1500)
    assert sorted(str(body["query"]) for body in service.bodies) == ["a text", "another"]
    assert {body["k"] for body in service.bodies} == {10}
    assert {body["effort"] for body in service.bodies} == {"balanced"}
    assert "X-Request-Timeout-Ms: 1500\r\n" in service.heads[0]
    assert recorder.server_timing == [b"queue;dur=0.5, total;dur=2"] * 2
