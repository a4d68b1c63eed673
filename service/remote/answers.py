"""The service's answers as frozen dataclasses. Parsing ignores unknown fields.

It raises KeyError, TypeError or ValueError if a field is missing or has another type, and
`service.remote.calls` turns these into AnswerNotUnderstood.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]
Vector = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ScoredLabel:
    """One recommended label; `text` and `metadata` are None unless the call included them.

    `rule` is the operator's rule that moved it: `boost`, `pin` or `bury`.
    """

    id: str
    score: float
    text: str | None = None
    metadata: Json | None = None
    rule: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one text or embedding: labels, best first.

    `truncated` says that the text was cut. `plan` says how a filtered answer was computed, and
    `explanation` why it has these labels, if the call set `explain`.
    """

    labels: tuple[ScoredLabel, ...]
    truncated: bool = False
    embedding: Vector | None = None
    plan: Json | None = None
    explanation: Json | None = None

    @classmethod
    def parse(cls, raw: Json) -> "Result":
        """Read one entry of `results`."""
        embedding = raw.get("embedding")
        return cls(
            labels=tuple(
                ScoredLabel(
                    str(label["id"]),
                    float(label["score"]),
                    label.get("text"),
                    label.get("metadata"),
                    label.get("rule"),
                )
                for label in raw["labels"]
            ),
            truncated=bool(raw.get("truncated", False)),
            embedding=None if embedding is None else tuple(embedding),
            plan=raw.get("plan"),
            explanation=raw.get("explanation"),
        )


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Results in the order of the texts, with the bundle and the effort that made them.

    `effort_asked` is the requested effort, if the service lowered it. `stages_ms` is the
    Server-Timing header: milliseconds by stage, and `total`.
    """

    results: tuple[Result, ...]
    bundle_id: str
    effort: str
    score_kind: str
    effort_asked: str | None = None
    request_id: str = ""
    stages_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[ScoredLabel, ...]:
        """The labels of the only text; raises ValueError if there were several texts."""
        [result] = self.results
        return result.labels

    @classmethod
    def parse(cls, raw: Json, headers: Mapping[str, str]) -> "Recommendation":
        """Parse the answer of a route that recommends."""
        return cls(
            results=tuple(Result.parse(result) for result in raw["results"]),
            bundle_id=str(raw["bundle_id"]),
            effort=str(raw["effort"]),
            score_kind=str(raw["score_kind"]),
            effort_asked=raw.get("effort_asked"),
            request_id=headers.get("x-request-id", ""),
            stages_ms=stages_ms(headers.get("server-timing", "")),
        )


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector of `dim` numbers for each text, in order."""

    embeddings: tuple[Vector, ...]
    dim: int
    truncated: tuple[bool, ...]
    bundle_id: str

    @classmethod
    def parse(cls, raw: Json) -> "Embeddings":
        """Read the answer of POST /v1/embed."""
        return cls(
            tuple(tuple(row) for row in raw["embeddings"]),
            int(raw["dim"]),
            tuple(bool(cut) for cut in raw["truncated"]),
            str(raw["bundle_id"]),
        )


@dataclass(frozen=True, slots=True)
class Label:
    """One label as the service holds it; `source` is `bundle` or `added`."""

    id: str
    text: str
    metadata: Json
    source: str
    bundle_id: str

    @classmethod
    def parse(cls, raw: Json) -> "Label":
        """Read the answer of GET /v1/labels/{id}."""
        return cls(
            str(raw["id"]),
            str(raw["text"]),
            raw.get("metadata") or {},
            str(raw["source"]),
            str(raw["bundle_id"]),
        )


@dataclass(frozen=True, slots=True)
class Applied:
    """How many labels a call changed, and the number of the last change."""

    applied: int
    sequence: int

    @classmethod
    def parse(cls, raw: Json) -> "Applied":
        """Read the answer of a route that changes labels."""
        return cls(int(raw["applied"]), int(raw["sequence"]))


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """An effort with its measurements: recall in [0, 1], P@1 in percent, time in microseconds."""

    name: str
    recall_at_10: float
    p_at_1: float
    search_us_p50: float


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits in force for requests."""

    max_queries: int
    max_text_chars: int
    max_k: int
    max_body_bytes: int
    request_timeout_max_ms: int


@dataclass(frozen=True, slots=True)
class Info:
    """A model, its bundle and the service's limits; `raw` is the whole answer of GET /v1/info."""

    name: str
    bundle_id: str
    version: str
    n_labels: int
    dim: int
    index_kind: str
    score_kind: str
    default_k: int
    default_effort: str
    operating_points: tuple[OperatingPoint, ...]
    device: str
    limits: Limits
    models: tuple[str, ...]
    raw: Json

    @classmethod
    def parse(cls, raw: Json) -> "Info":
        """Read the answer of GET /v1/info."""
        points = raw["operating_points"]
        limits = raw["limits"]
        return cls(
            name=str(raw["name"]),
            bundle_id=str(raw["bundle_id"]),
            version=str(raw["version"]),
            n_labels=int(raw["n_labels"]),
            dim=int(raw["dim"]),
            index_kind=str(raw["index_kind"]),
            score_kind=str(raw["score_kind"]),
            default_k=int(raw["default_k"]),
            default_effort=str(raw["default_effort"]),
            operating_points=tuple(
                OperatingPoint(**{name: point[name] for name in OperatingPoint.__slots__})
                for point in points
            ),
            device=str(raw["device"]["active"]),
            limits=Limits(**{name: int(limits[name]) for name in Limits.__slots__}),
            models=tuple(raw.get("models", [raw["name"]])),
            raw=raw,
        )


def stages_ms(server_timing: str) -> dict[str, float]:
    """Parse a Server-Timing header to milliseconds by stage.

    >>> stages_ms("queue;dur=0.022, total;dur=4.315")
    {'queue': 0.022, 'total': 4.315}
    """
    durations = re.findall(r"([\w-]+)\s*;\s*dur=([\d.]+)", server_timing)
    return {name: float(ms) for name, ms in durations}
