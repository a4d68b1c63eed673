import io
import json
import logging
from collections.abc import Iterator

import pytest

from service.core.types import StageTimings
from service.observe.logs import JsonFormatter, TextFormatter, configure_logging, request_id_of_task
from service.observe.telemetry import FLUSH_AT, SECONDS_BUCKETS, Telemetry


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    before = (root.level, root.handlers[:], logging.getLogger("uvicorn").level)
    yield root
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    logging.getLogger("uvicorn").setLevel(before[2])


def sample(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    telemetry.render()  # a scrape sees everything
    return telemetry.registry.get_sample_value(f"astrolabe_{name}", labels)


def test_buckets_rise_from_50_microseconds_to_10_seconds_and_are_fine_below_10_ms() -> None:
    assert list(SECONDS_BUCKETS) == sorted(set(SECONDS_BUCKETS))
    assert (SECONDS_BUCKETS[0], SECONDS_BUCKETS[-1]) == (0.00005, 10.0)
    assert sum(bound < 0.01 for bound in SECONDS_BUCKETS) >= 10


def test_two_services_do_not_share_counts() -> None:
    one, other = Telemetry(), Telemetry()
    one.rejected("queue_full")
    assert sample(one, "rejected_total", reason="queue_full") == 1
    assert sample(other, "rejected_total", reason="queue_full") is None


def test_batch_feeds_stages_sizes_and_padding() -> None:
    telemetry = Telemetry()
    telemetry.batch_done(3, StageTimings(0.1, 0.2, 0.3, 6, 8, rerank_s=0.4))
    assert sample(telemetry, "stage_seconds_sum", stage="encode") == pytest.approx(0.2)
    assert sample(telemetry, "stage_seconds_sum", stage="rerank") == pytest.approx(0.4)
    assert sample(telemetry, "batch_queries_sum") == 3
    assert sample(telemetry, "batch_tokens_sum") == 6
    assert sample(telemetry, "batch_padding_ratio_sum") == pytest.approx(0.25)


def test_queue_gauge_is_read_at_scrape_time() -> None:
    telemetry, waiting = Telemetry(), [5]
    telemetry.watch(queue_tokens=lambda: waiting[0])
    waiting[0] = 9
    assert sample(telemetry, "queue_tokens") == 9


def test_ceiling_on_effort_is_read_at_scrape_time() -> None:
    telemetry, steps_down = Telemetry(), [0]
    assert sample(telemetry, "effort_steps_down") == 0
    telemetry.watch(effort_steps_down=lambda: steps_down[0])
    steps_down[0] = 2
    assert sample(telemetry, "effort_steps_down") == 2


def test_observations_are_kept_back_and_none_is_lost() -> None:
    telemetry = Telemetry()
    for i in range(10 * FLUSH_AT + 1):
        telemetry.request_finished("/x", 200 + i % 2, 0.001)
        assert len(telemetry._pending) < FLUSH_AT
    counts = [
        sample(telemetry, "request_seconds_count", route="/x", status=s) for s in ("200", "201")
    ]
    assert sum(count or 0 for count in counts) == 10 * FLUSH_AT + 1


def test_in_flight_follows_the_attribute() -> None:
    telemetry = Telemetry()
    telemetry.in_flight += 2
    assert b"astrolabe_inflight_requests 2.0" in telemetry.render()


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("service.x", logging.INFO, "f.py", 1, message, (), None)
    if fields:
        made.fields = fields
    return made


def test_json_log_is_one_object_a_line_with_fields_and_request_id() -> None:
    token = request_id_of_task.set("r-1")
    line = JsonFormatter().format(record("two\nlines", status=200))
    request_id_of_task.reset(token)
    assert "\n" not in line
    entry = json.loads(line)
    assert entry["message"] == "two\nlines"
    assert (entry["level"], entry["request_id"], entry["status"]) == ("info", "r-1", 200)
    assert entry["time"].endswith("Z")


def test_text_log_keeps_a_message_on_one_line() -> None:
    line = TextFormatter().format(record("two\nlines", path="/a\r\n/b"))
    assert "\n" not in line
    assert "two\\nlines path='/a\\r\\n/b'" in line


@pytest.mark.parametrize("style", ["json", "text"])
def test_traceback_is_logged(style: str, root_logger: logging.Logger) -> None:
    stream = io.StringIO()
    configure_logging("info", style, stream)
    try:
        raise ValueError("why")
    except ValueError:
        root_logger.exception("it broke")
    assert "ValueError: why" in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 1 or style == "text"


def test_level_is_respected_and_uvicorn_keeps_quiet(root_logger: logging.Logger) -> None:
    stream = io.StringIO()
    configure_logging("warning", "json", stream)
    root_logger.info("not this")
    logging.getLogger("uvicorn.error").info("nor this")
    root_logger.warning("this")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["this"]
