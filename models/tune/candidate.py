"""What is tried and what was found: an index of one kind, built and searched in one way.

Plain values that JSON holds; how they are measured is bench.py, what is wanted of them goal.py.
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
    """One index: its kind, and the keys of `IndexConfig` that differ from the run's own."""

    kind: str
    settings: tuple[tuple[str, Setting], ...] = ()

    @classmethod
    def of(cls, kind: str, settings: Mapping[str, Setting]) -> Self:
        """The same from a mapping, whatever its order."""
        return cls(kind, tuple(sorted(settings.items())))

    def __str__(self) -> str:
        """The kind, and what is set otherwise than by default.

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
    """A built index with one entry of its kind's grid; no parameters: all of it is scanned."""

    build: Build
    params: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, build: Build, params: Mapping[str, int]) -> Self:
        """The same from a mapping, whatever its order."""
        return cls(build, tuple(sorted(params.items())))

    def __str__(self) -> str:
        found = " ".join(f"{name}={value}" for name, value in self.params)
        return f"{self.build}, {found}" if found else str(self.build)

    @property
    def key(self) -> str:
        """Text that only an equal candidate has.

        >>> Candidate(Build("hnsw", (("m", 32),)), (("ef_search", 10),)).key
        '["hnsw", {"m": 32}, {"ef_search": 10}]'
        """
        return json.dumps([self.build.kind, dict(self.build.settings), dict(self.params)])


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of a search, one query at a time on one thread.

    `p50` and `p99` are over queries, of what each took undisturbed: the lower quartile of several
    passes. `clocked_p99` is the 99th percentile of a single pass, the middle one: with all that the
    machine did in between. `cold` is with the caches swept before each query; None where that was
    not measured.
    """

    p50: float
    p99: float
    clocked_p99: float
    cold_p50: float | None = None
    cold_p99: float | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a candidate did on the first `n_queries` validation queries, in their fixed order.

    Recall@10 and its standard error are shares, against the same scoring searched exhaustively;
    P@k are percent, `p_at_1_loss` points below exact search with the trained label vectors.
    `own_scores`: the kind scores by a model of its own, so that its recall says nothing about them.
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

    @property
    def sure_recall(self) -> float:
        """The recall that fresh queries hold too: two standard errors lower."""
        return self.recall - 2 * self.recall_error

    def as_json(self) -> dict[str, Any]:
        """Plain values; `from_json` takes them back."""
        candidate = {
            "kind": self.candidate.build.kind,
            "settings": dict(self.candidate.build.settings),
            "params": dict(self.candidate.params),
        }
        return asdict(self) | {"candidate": candidate}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError where something else was written."""
        of = raw["candidate"]
        candidate = Candidate.of(Build.of(of["kind"], of["settings"]), of["params"])
        return cls(**{**raw, "candidate": candidate, "timing": Timing(**raw["timing"])})
