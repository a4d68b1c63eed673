"""Recommender: an open bundle in a program, without a server.

It checks requests as the HTTP routes do and answers with the same engine, so its answers are those
of POST /v1/recommend.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from pydantic import ValidationError

from service.bundle.cache import BundleCache
from service.bundle.source import fetch
from service.core.engine import Engine
from service.core.types import Float32Rows, Prediction, Query
from service.errors import InvalidValue
from service.remote.answers import Recommendation, Result, ScoredLabel
from service.serving.request_models import (
    SCORE_DECIMALS,
    VISIBLE,
    LabelsRequest,
    RequestLimits,
    label_filter_of,
    n_reaching,
    request_models,
)
from service.settings.places import BUNDLE_CACHE, BundleUrl, parse_place
from service.settings.settings import Settings

TEXTS_AT_ONCE: Final = 1024
"""Texts that one call of the engine gets. A choice: enough to sort by length, few enough that
memory does not grow with the call."""

MAX_TEXT_CHARS: Final[int] = Settings.model_fields["max_text_chars"].default
"""The service's own limit, so that both take the same texts."""

_VISIBLE: Final = re.compile(VISIBLE)


class Recommender:
    """One open bundle. Threads may share it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        manifest = engine.manifest
        self._body = request_models(
            RequestLimits(
                max_queries=1,
                max_text_chars=MAX_TEXT_CHARS,
                max_k=engine.index.n_rows,
                max_filter_ids=engine.index.n_rows,
                default_k=manifest.defaults.k,
                default_effort=manifest.defaults.effort,
                efforts=engine.efforts,
                item_filter=False,
                dim=engine.encoder.dim,
            )
        ).body

    @classmethod
    def open(
        cls,
        place: str | Path,
        *,
        device: str = "auto",
        threads: int = 1,
        cache: Path = BUNDLE_CACHE,
    ) -> "Recommender":
        """Open a bundle, or the newest of a folder of bundles; `threads` compute one batch.

        `place` is a path, or a URL, whose bundle is kept in `cache`. Raises BundleError,
        DeviceUnavailable, and InvalidValue for a URL that cannot name bundles.
        """
        try:
            place = parse_place(place)
        except ValueError as exc:
            raise InvalidValue(str(exc)) from exc
        if isinstance(place, BundleUrl):
            place = fetch(place, BundleCache(cache.expanduser()))
        return cls(Engine.open(place, device=device, intra_op_threads=threads))

    @property
    def bundle_id(self) -> str:
        """The name of the bundle's content."""
        return self.engine.manifest.bundle_id

    def __enter__(self) -> "Recommender":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what the bundle's catalogue holds open."""
        self.engine.catalogue.close()

    def request(self, **fields: Any) -> LabelsRequest:
        """The fields of a body of POST /v1/recommend but `query`, checked; raises InvalidValue.

        A field that is None is left to its default. One request may serve any number of texts.
        """
        given = {name: value for name, value in fields.items() if value is not None}
        try:
            return self._body.model_validate({"query": "any", **given})
        except ValidationError as exc:
            error = exc.errors(include_url=False)[0]
            field = ".".join(str(part) for part in error["loc"])
            raise InvalidValue(f"{field}: {error['msg']}") from exc

    def recommend(
        self,
        texts: str | Sequence[str],
        *,
        k: int | None = None,
        where: dict[str, Any] | None = None,
        allow: list[str] | None = None,
        deny: list[str] | None = None,
        effort: str | None = None,
        min_score: float | None = None,
    ) -> Recommendation:
        """The best labels of each text, best first; raises InvalidValue.

        The arguments mean what the fields of POST /v1/recommend mean.
        """
        request = self.request(
            k=k, where=where, allow=allow, deny=deny, effort=effort, min_score=min_score
        )
        texts = _checked(texts)
        predictions = [
            prediction
            for start in range(0, len(texts), TEXTS_AT_ONCE)
            for prediction in self.predict(texts[start : start + TEXTS_AT_ONCE], request)
        ]
        return Recommendation(
            results=tuple(self._result(one, request.min_score) for one in predictions),
            bundle_id=self.bundle_id,
            effort=request.effort,
            score_kind=self.engine.calibration.score_kind,
        )

    def predict(self, texts: Sequence[str], request: LabelsRequest) -> list[Prediction]:
        """The engine's answers to texts that `fault` finds nothing wrong with, as one batch."""
        label_filter = label_filter_of(request)
        queries = [
            Query(text, request.k, request.effort, None, True, label_filter) for text in texts
        ]
        return self.engine.predict(queries).predictions

    def embed(self, texts: str | Sequence[str]) -> Float32Rows:
        """The vector of each text, as rows (n, dim) float32; raises InvalidValue."""
        texts = _checked(texts)
        effort = self.engine.manifest.defaults.effort
        rows = np.zeros((len(texts), self.engine.encoder.dim), np.float32)
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            queries = [Query(text, 0, effort) for text in texts[start : start + TEXTS_AT_ONCE]]
            for row, one in enumerate(self.engine.predict(queries).predictions, start):
                rows[row] = one.embedding
        return rows

    def _result(self, prediction: Prediction, min_score: float | None) -> Result:
        scores = prediction.scores.tolist()
        labels = map(self.engine.catalogue.label, prediction.rows.tolist())
        return Result(
            labels=tuple(
                ScoredLabel(label.label_id, round(score, SCORE_DECIMALS), label.text)
                for label, score in zip(
                    labels, scores[: n_reaching(scores, min_score)], strict=False
                )
            ),
            truncated=prediction.truncated,
        )


def fault(text: str | None) -> str | None:
    """What is wrong with a text, as a sentence; None if nothing is."""
    if text is None:
        return "the text is null"
    if len(text) > MAX_TEXT_CHARS:
        return f"the text has {len(text)} characters, the limit is {MAX_TEXT_CHARS}"
    if not _VISIBLE.search(text):
        return "the text is blank"
    return None


def _checked(texts: str | Sequence[str]) -> Sequence[str]:
    texts = [texts] if isinstance(texts, str) else texts
    for position, text in enumerate(texts):
        if wrong := fault(text):
            raise InvalidValue(f"texts[{position}]: {wrong}")
    return texts
