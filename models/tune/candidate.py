"""Values of a tuning: an index and how it is searched (a candidate), and its measurement.

All can be written as JSON. `subject` measures candidates, and `goal` judges the measurements.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Self

from models.config import IndexConfig

Setting = int | float | str


@dataclass(frozen=True, slots=True)
class Build:
    """One index: its kind, and the keys of `IndexConfig` from which it is built."""

    kind: str
    settings: tuple[tuple[str, Setting], ...] = ()

    @classmethod
    def of(cls, kind: str, settings: Mapping[str, Setting]) -> Self:
        """Make one from a mapping; the order of its keys does not matter."""
        return cls(kind, tuple(sorted(settings.items())))

    def __str__(self) -> str:
        """The kind, and the settings that differ from the defaults.

        >>> str(Build("hnsw", (("ef_construction", 200), ("m", 16))))
        'hnsw m=16'
        """
        usual = _usual_settings()
        unusual = [each for each in self.settings if each not in usual]
        return " ".join([self.kind, *(f"{name}={value}" for name, value in unusual)])


@cache
def _usual_settings() -> frozenset[tuple[str, Setting]]:
    return frozenset(IndexConfig().model_dump().items())


@dataclass(frozen=True, slots=True)
class Candidate:
    """An index and its search parameters; without parameters the search is exhaustive."""

    build: Build
    params: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, build: Build, params: Mapping[str, int]) -> Self:
        """Make one from a mapping; the order of its keys does not matter."""
        return cls(build, tuple(sorted(params.items())))

    def __str__(self) -> str:
        found = " ".join(f"{name}={value}" for name, value in self.params)
        return f"{self.build}, {found}" if found else str(self.build)

    @property
    def key(self) -> str:
        """A text that two candidates share only if they are equal.

        >>> Candidate(Build("hnsw", (("m", 32),)), (("ef_search", 10),)).key
        '["hnsw", {"m": 32}, {"ef_search": 10}]'
        """
        return json.dumps([self.build.kind, dict(self.build.settings), dict(self.params)])


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of a search, one query at a time on one thread.

    `p50` and `p99` are percentiles over queries, where each query counts with the lower quartile of
    its times in several passes. `clocked_p99` is the median, over passes, of the plain 99th
    percentile, which includes disturbances by other work. `cold_p50` and `cold_p99` are measured
    with swept caches before each query; None where they were not measured.
    """

    p50: float
    p99: float
    clocked_p99: float
    cold_p50: float | None = None
    cold_p99: float | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """Quality and speed of a candidate on the first `n_queries` of the shuffled validation queries.

    `recall` (recall@10) and its standard error are shares, compared with an exhaustive search by
    the same scores. `p_at_1` and `p_at_5` are in percent. `p_at_1_loss` is in points below an exact
    search, by the label vectors where these are the model. Its standard error is paired, of the
    differences of the same queries; None in older records. Both errors let queries of a group vary
    together. With `own_scores` the index has a scoring model of its own, and recall does not tell
    how good those scores are.
    """

    candidate: Candidate
    n_queries: int
    recall: float
    recall_error: float
    p_at_1: float
    p_at_5: float
    p_at_1_loss: float
    own_scores: bool
    timing: Timing
    index_bytes: int
    p_at_1_loss_error: float | None = None

    @property
    def sure_recall(self) -> float:
        """The recall less two standard errors, which other queries very likely reach too."""
        return self.recall - 2 * self.recall_error

    def as_json(self) -> dict[str, Any]:
        """The measurement as values that JSON holds; `from_json` reads them."""
        candidate = {
            "kind": self.candidate.build.kind,
            "settings": dict(self.candidate.build.settings),
            "params": dict(self.candidate.params),
        }
        return asdict(self) | {"candidate": candidate}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Read what `as_json` returned; raises KeyError or TypeError for anything else."""
        of = raw["candidate"]
        candidate = Candidate.of(Build.of(of["kind"], of["settings"]), of["params"])
        return cls(**{**raw, "candidate": candidate, "timing": Timing(**raw["timing"])})
