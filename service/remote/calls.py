"""Requests as values: what to send, how to parse the answer, and whether to repeat the request.

Nothing here does I/O, so the synchronous and the asynchronous client share all of it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypedDict, TypeVar
from urllib.parse import quote, urlencode

from service.remote.answers import (
    Applied,
    Embeddings,
    Info,
    Label,
    Limits,
    Recommendation,
)
from service.remote.errors import AnswerNotUnderstood

T = TypeVar("T")
Text: TypeAlias = str | Mapping[str, Any]
"""A text, its fields by name for a model that reads them apart (GET /v1/info names them), or a
history: `{"texts": [...], "weights": [...]}`, several texts that are one query."""
Headers = Mapping[str, str]


class RecommendOptions(TypedDict, total=False):
    """Options of a recommendation; the service has a default for each.

    They are the fields of POST /v1/recommend (docs/http-api.md).
    """

    k: int
    min_score: float | None
    effort: str
    effort_strict: bool
    scores: str
    include: Sequence[str]
    allow: Sequence[str]
    deny: Sequence[str]
    where: Mapping[str, Any]
    explain: bool
    diversity: float
    model: str


class NewLabel(TypedDict, total=False):
    """A label to add; the service requires `id` and `text`."""

    id: str
    text: str
    metadata: Mapping[str, Any]


class Event(TypedDict, total=False):
    """What a user did with a label; needs `label`, `event`, and `request_id` or `text`.

    They are the fields of an event of POST /v1/feedback (docs/learning-loop.md).
    """

    label: str
    event: str
    request_id: str
    query: int
    text: str
    value: float
    position: int


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and `read`, which parses its answer.

    `repeatable` says that sending it twice has the effect of sending it once. `admin` says that it
    needs the admin key.
    """

    method: str
    path: str
    read: Callable[[Any, Headers], T]
    body: Mapping[str, Any] | None = None
    repeatable: bool = True
    admin: bool = False

    def parse(self, content: bytes, headers: Headers) -> T:
        """Parse an answer; raises AnswerNotUnderstood if it is not an answer of this API."""
        try:
            return self.read(json.loads(content), headers)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise AnswerNotUnderstood(
                f"{self.method} /{self.path} answered what this client cannot read ({exc!r}): "
                "is the address that of an Astrolabe service of this version?"
            ) from exc


def recommend(
    texts: Text | Sequence[Text],
    item_id: str | Sequence[str | None] | None,
    options: RecommendOptions,
) -> Call[Recommendation]:
    """POST /v1/recommend."""
    body: dict[str, Any] = {"query": _plain(texts), **_set_options(options)}
    if item_id is not None:
        body["item_id"] = _plain(item_id)
    return Call("POST", "v1/recommend", Recommendation.parse, body)


def recommend_by_embedding(
    embedding: Sequence[float] | Sequence[Sequence[float]], options: RecommendOptions
) -> Call[Recommendation]:
    """POST /v1/recommend/by-embedding."""
    rows = [row if isinstance(row, int | float) else list(row) for row in embedding]
    body = {"embedding": rows, **_set_options(options)}
    return Call("POST", "v1/recommend/by-embedding", Recommendation.parse, body)


def embed(texts: Text | Sequence[Text], model: str | None) -> Call[Embeddings]:
    """POST /v1/embed."""
    body: dict[str, Any] = {"input": _plain(texts)}
    if model is not None:
        body["model"] = model
    return Call("POST", "v1/embed", lambda raw, _: Embeddings.parse(raw), body)


def info(model: str | None) -> Call[Info]:
    """GET /v1/info."""
    return Call("GET", "v1/info" + _model_query(model), lambda raw, _: Info.parse(raw))


def ready() -> Call[bool]:
    """GET /readyz."""
    return Call("GET", "readyz", lambda raw, _: raw["status"] == "ready")


def label(label_id: str, model: str | None) -> Call[Label]:
    """GET /v1/labels/{id}."""
    return Call("GET", _label_path(label_id) + _model_query(model), lambda raw, _: Label.parse(raw))


def add_labels(labels: Sequence[NewLabel]) -> Call[Applied]:
    """POST /v1/labels."""
    return _change("POST", "v1/labels", {"labels": [dict(label) for label in labels]})


def update_label(label_id: str, text: str, metadata: Mapping[str, Any] | None) -> Call[Applied]:
    """PUT /v1/labels/{id}."""
    return _change("PUT", _label_path(label_id), {"text": text, "metadata": dict(metadata or {})})


def remove_label(label_id: str) -> Call[Applied]:
    """DELETE /v1/labels/{id}."""
    return _change("DELETE", _label_path(label_id), None)


def feedback(events: Sequence[Event]) -> Call[int]:
    """POST /v1/feedback."""
    # Not repeatable: what an answer got lost of would be stored twice.
    body = {"events": [dict(event) for event in events]}
    return Call("POST", "v1/feedback", lambda raw, _: int(raw["accepted"]), body, repeatable=False)


def _change(method: str, path: str, body: Mapping[str, Any] | None) -> Call[Applied]:
    # Not even PUT and DELETE are repeatable: somebody may change the label between two tries.
    return Call(method, path, lambda raw, _: Applied.parse(raw), body, repeatable=False, admin=True)


def chunks(
    texts: Iterable[Text],
    item_ids: Sequence[str | None] | None,
    limits: Limits,
    options: RecommendOptions,
) -> Iterator[tuple[list[Text], list[str | None] | None]]:
    """Split texts and their item ids, in order, into requests within the service's limits.

    A text that is too long by itself goes alone, so that the service answers with its own error.
    """
    overhead = _n_bytes(_set_options(options)) + 64  # 64: the names of the other fields
    part: list[Text] = []
    ids: list[str | None] | None = None if item_ids is None else []
    n_bytes = overhead
    for i, text in enumerate(texts):
        item_id = None if item_ids is None else item_ids[i]
        cost = _n_bytes(text) + _n_bytes(item_id) + 2
        full = len(part) == limits.max_queries or n_bytes + cost > limits.max_body_bytes
        if part and full:
            yield part, ids
            part, ids, n_bytes = [], None if item_ids is None else [], overhead
        part.append(text)
        if ids is not None:
            ids.append(item_id)
        n_bytes += cost
    if part:
        yield part, ids


def _n_bytes(value: Any) -> int:
    """Bytes of a value in the JSON that the client sends."""
    return len(json.dumps(value, ensure_ascii=False).encode(errors="replace"))


def _set_options(options: RecommendOptions) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def _plain(texts: Text | Sequence[Any]) -> Text | list[Any]:
    return texts if isinstance(texts, str | Mapping) else list(texts)


def _label_path(label_id: str) -> str:
    return "v1/labels/" + quote(label_id, safe="")


def _model_query(model: str | None) -> str:
    return "" if model is None else "?" + urlencode({"model": model})
