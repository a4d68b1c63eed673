"""Metrics in memory that processes share: they add up, and no disk or full area harms an answer."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values

from service.observe.shared_values import Area, SharedCollector, SharedValue, Writer
from tests.support.metrics import samples


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = values.ValueClass
    yield
    values.ValueClass = before


def write(area: Area, record: Callable[[CollectorRegistry], Any]) -> None:
    """What a process with this area would write."""
    values.ValueClass = partial(SharedValue, Writer(area))
    record(CollectorRegistry())


def page_of(*areas: Area) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(SharedCollector(areas))
    return samples(generate_latest(registry).decode())


def gauge(mode: Any, value: float) -> Callable[[CollectorRegistry], Any]:
    return lambda registry: Gauge("g", "G.", registry=registry, multiprocess_mode=mode).set(value)


def histogram(*observed: float) -> Callable[[CollectorRegistry], Any]:
    def record(registry: CollectorRegistry) -> None:
        metric = Histogram("h", "H.", ["of"], buckets=(1, 2), registry=registry)
        for value in observed:
            metric.labels("x").observe(value)

    return record


def counter(amount: float) -> Callable[[CollectorRegistry], Any]:
    return lambda registry: Counter("c", "C.", ["by"], registry=registry).labels('a"b').inc(amount)


COMBINED: dict[str, tuple[list[Callable[[CollectorRegistry], Any]], dict[str, float]]] = {
    "counters": ([counter(2), counter(3)], {'c_total{by="a\\"b"}': 5}),
    "sums": ([gauge("livesum", 2), gauge("livesum", 3)], {"g": 5}),
    "the greatest": ([gauge("livemax", 2), gauge("livemax", 3)], {"g": 3}),
    "the least": ([gauge("livemin", 2), gauge("livemin", 3)], {"g": 2}),
    "histograms": (
        [histogram(0.5, 1.5), histogram(1.5, 9)],
        {
            'h_bucket{le="1.0",of="x"}': 1,
            'h_bucket{le="2.0",of="x"}': 3,
            'h_bucket{le="+Inf",of="x"}': 4,
            'h_count{of="x"}': 4,
            'h_sum{of="x"}': 12.5,
        },
    ),
}


@pytest.mark.parametrize(("records", "page"), COMBINED.values(), ids=COMBINED)
def test_a_scrape_combines_the_values_of_all_processes(
    records: list[Callable[[CollectorRegistry], Any]], page: dict[str, float]
) -> None:
    areas = [Area() for _ in records]
    for area, record in zip(areas, records, strict=True):
        write(area, record)
    assert page_of(*areas) == page


def test_a_replacement_goes_on_with_the_counters_and_without_the_gauges() -> None:
    dead, other = Area(), Area()
    write(dead, counter(2))
    write(dead, gauge("livemax", 9))
    write(other, gauge("livemax", 1))
    dead.forget_live()
    assert page_of(dead, other) == {'c_total{by="a\\"b"}': 2, "g": 1}
    write(dead, counter(3))
    write(dead, gauge("livemax", 4))
    assert page_of(dead, other) == {'c_total{by="a\\"b"}': 5, "g": 4}


def test_another_process_sees_what_a_child_writes() -> None:
    area = Area()
    if (pid := os.fork()) == 0:
        write(area, counter(7))
        os._exit(0)
    os.waitpid(pid, 0)
    assert page_of(area) == {'c_total{by="a\\"b"}': 7}


def test_a_series_without_room_is_left_out_and_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    area = Area(512)

    def record(registry: CollectorRegistry) -> None:
        many = Counter("c", "C.", ["by"], registry=registry)
        for i in range(100):
            many.labels(str(i)).inc()
            many.labels(str(i)).inc()

    write(area, record)
    page = page_of(area)
    assert 0 < len(page) < 100
    assert set(page.values()) == {2}
    assert "no room for the metric c_total" in caplog.text
