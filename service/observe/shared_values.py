"""Values of metrics in memory that processes share, and the collector that adds them up.

prometheus_client keeps the values of several processes in mapped files. Where their disk is full, a
write into such a file kills the process (SIGBUS). These values lie in anonymous memory instead: the
master maps an `Area` for each process before it forks, and no disk is needed. Where an area is
full, a new series is left out of the sums; nobody's answer suffers.
"""

import json
import logging
import math
import mmap
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from threading import Lock
from typing import Any, Final

from prometheus_client import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

log = logging.getLogger(__name__)

AREA_BYTES: Final = 8 << 20
"""Memory of one process's values; only what is written takes up memory. A choice: an entry takes
about 250 bytes, so there is room for 30,000 series, ten times what a service with all its routes,
statuses and a hundred keys has."""

_HEADER_BYTES: Final = 8
"""At the start stands the number of bytes in use, these included."""
_ENTRY: Final = struct.Struct("=dq")
"""A value and the length of the key that follows, which is padded to 8 bytes: a value then lies
within one word of memory, which is read and written whole."""

Key = tuple[str, str, str, str, tuple[tuple[str, str], ...], str]
"""(type, mode of a gauge, metric, sample, labels, help text)"""

FORGOTTEN: Final = math.nan
"""What a dead process's live gauges hold. No metric of this service is ever not a number."""


class Area:
    """The values of one process. It alone writes while it lives; any process reads."""

    def __init__(self, size: int = AREA_BYTES) -> None:
        self._memory = mmap.mmap(-1, size)
        self._doubles = memoryview(self._memory).cast("d")
        # Not by `pack_into`, which writes byte by byte: a reader must never see half a number.
        self._used = memoryview(self._memory).cast("q")
        self._used[0] = _HEADER_BYTES
        self._size = size

    def add(self, key: Key) -> int | None:
        """The place of a key that is not there yet, with the value 0; None without room."""
        used = self._used[0]
        text = json.dumps(key).encode()
        end = used + _ENTRY.size + len(text) + -len(text) % 8
        if end > self._size:
            return None
        _ENTRY.pack_into(self._memory, used, 0.0, len(text))
        self._memory[used + _ENTRY.size : used + _ENTRY.size + len(text)] = text
        self._used[0] = end  # at last: only now others read the entry
        return used // 8

    def read(self, place: int) -> float:
        """The value at a place."""
        return self._doubles[place]

    def write(self, place: int, value: float) -> None:
        """Set the value at a place."""
        self._doubles[place] = value

    def places(self) -> Iterator[tuple[Key, int]]:
        """Every key with its place."""
        start, used = _HEADER_BYTES, self._used[0]
        while start < used:
            _, length = _ENTRY.unpack_from(self._memory, start)
            at = start + _ENTRY.size
            yield _parsed(self._memory[at : at + length]), start // 8
            start = at + length + -length % 8

    def forget_live(self) -> None:
        """Leave the live gauges of a dead process out of the sums."""
        for (_, mode, *_rest), place in self.places():
            if mode.startswith("live"):
                self.write(place, FORGOTTEN)


@cache  # bounded by the areas, and a scrape reads the same keys again
def _parsed(text: bytes) -> Key:
    typ, mode, metric, sample, labels, help_text = json.loads(text)
    return typ, mode, metric, sample, tuple(map(tuple, labels)), help_text


class Writer:
    """Makes the values of one process's metrics, in its area.

    A process that follows a dead one goes on with its counters and histograms.
    """

    def __init__(self, area: Area) -> None:
        self.area = area
        self.lock = Lock()
        self._places = dict(area.places())

    def place_of(self, key: Key) -> int | None:
        """Where the value of this key lies, None where there is no room. Call it under the lock."""
        place = self._places.get(key)
        if place is None:
            place = self.area.add(key)
            if place is None:
                log.warning("no room for the metric %s%s: it is not shown", key[3], key[4])
            else:
                self._places[key] = place
        return place


class SharedValue:
    """One value of a metric, with the methods and parameters that prometheus_client calls."""

    _multiprocess = True

    def __init__(
        self,
        writer: Writer,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Sequence[str],
        labelvalues: Sequence[str],
        help_text: str,
        multiprocess_mode: str = "",
        **_: Any,
    ) -> None:
        labels = tuple(zip(labelnames, labelvalues, strict=True))
        self._writer = writer
        with writer.lock:
            self._place = writer.place_of(
                (typ, multiprocess_mode, metric_name, name, labels, help_text)
            )
            old = 0.0 if self._place is None else writer.area.read(self._place)
            self._set(0.0 if math.isnan(old) else old)

    def inc(self, amount: float) -> None:
        """Add to the value."""
        with self._writer.lock:
            self._set(self._value + amount)

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Set the value; the timestamp is not kept."""
        with self._writer.lock:
            self._set(float(value))

    def get(self) -> float:
        """The value of this process."""
        return self._value

    def set_exemplar(self, exemplar: object) -> None:
        """Exemplars are not kept."""

    def get_exemplar(self) -> None:
        """There is never one."""

    def _set(self, value: float) -> None:
        self._value = value
        if self._place is not None:
            self._writer.area.write(self._place, value)


class SharedCollector(Collector):
    """Adds up the values of all areas, or takes the greatest or least of a gauge, by its mode."""

    def __init__(self, areas: Sequence[Area]) -> None:
        self._areas = areas

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family that any process has."""
        families: dict[str, Metric] = {}
        totals: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
        for area in self._areas:
            for (typ, mode, metric, sample, labels, text), place in area.places():
                value = area.read(place)
                if math.isnan(value):
                    continue
                families.setdefault(metric, Metric(metric, text, typ))
                values, series = totals.setdefault(metric, {}), (sample, labels)
                values[series] = _combined(mode, values.get(series), value)
        for name, family in families.items():
            values = totals[name]
            if family.type == "histogram":
                values = _cumulative(name, values)
            for (sample, labels), value in values.items():
                family.add_sample(sample, dict(labels), value)
            yield family


def _combined(mode: str, total: float | None, value: float) -> float:
    if total is None:
        return value
    if mode.endswith("max"):
        return max(total, value)
    return min(total, value) if mode.endswith("min") else total + value


def _cumulative(
    name: str, values: dict[tuple[str, tuple[tuple[str, str], ...]], float]
) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """A histogram's samples as a scrape has them: each bucket counts those below it too."""
    buckets: defaultdict[tuple[tuple[str, str], ...], dict[float, float]] = defaultdict(dict)
    shown = {}
    for (sample, labels), value in values.items():
        if sample == f"{name}_bucket":
            bounds = [float(bound) for label, bound in labels if label == "le"]
            buckets[tuple(pair for pair in labels if pair[0] != "le")][bounds[0]] = value
        else:
            shown[sample, labels] = value
    for labels, by_bound in buckets.items():
        count = 0.0
        for bound in sorted(by_bound):
            count += by_bound[bound]
            le = str(floatToGoString(bound))  # type: ignore[no-untyped-call]
            shown[f"{name}_bucket", (*labels, ("le", le))] = count
        shown[f"{name}_count", labels] = count
    return shown
