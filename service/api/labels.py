"""Routes that look a label up, and routes that add, update and remove labels.

One call may change thousands of labels. When it returns, its changes are on disk and searchable.
Changes need the admin key, which the gate checks; looking up does not.
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query
from pydantic import BaseModel, Field

from service.api.json_route import JsonRoute
from service.api.openapi import link, links
from service.api.schemas import LabelResponse
from service.core.catalogue.changes import Change
from service.core.labels.label_id import ID_PATTERN, MAX_ID_CHARS
from service.errors import (
    CatalogueCorrupt,
    CatalogueUnavailable,
    DeadlineExceeded,
    Forbidden,
    InternalError,
    InvalidValue,
    LabelExists,
    LabelUnknown,
    MalformedRequest,
    ModelUnknown,
    PayloadTooLarge,
    RateLimited,
    Unauthorized,
    UnsupportedMediaType,
)
from service.gate.gate import begin_change
from service.gate.problems import responses
from service.serving.deployment import Deployment
from service.serving.json_object import JsonObject
from service.serving.request_models import VISIBLE
from service.serving.serving import Serving

MAX_CHANGES = 2_000
"""Most changes in one call. Other answers wait while they are parsed and validated
(docs/lab/serving.md)."""

_ANY = (
    *(Unauthorized, PayloadTooLarge, InvalidValue, InternalError, ModelUnknown, RateLimited),
    DeadlineExceeded,
)
_CHANGING = (
    *_ANY,
    Forbidden,
    MalformedRequest,
    UnsupportedMediaType,
    LabelUnknown,
    LabelExists,
    CatalogueUnavailable,
    CatalogueCorrupt,
)

_LABEL = "/v1/labels/{label_id}"


def _to_label(label_id: str) -> dict[int | str, dict[str, Any]]:
    """Links from an answer to the routes of the label whose id this expression gives."""
    parameters = {"label_id": label_id}
    return links(
        lookUp=link("get", _LABEL, parameters),
        change=link("put", _LABEL, parameters),
        remove=link("delete", _LABEL, parameters),
    )


_ADDED = _to_label("$request.body#/labels/0/id")
_CHANGED = _to_label("$request.path.label_id")

# The catalogue checks the rest of the rule, and says what is wrong.
LabelId = Annotated[
    str,
    Field(min_length=1, max_length=MAX_ID_CHARS, json_schema_extra={"pattern": ID_PATTERN}),
]
Text = Annotated[str, Field(min_length=1, max_length=65536, pattern=VISIBLE)]


class NewLabel(JsonObject):
    """A label to add."""

    id: LabelId
    text: Text
    metadata: dict[str, Any] = Field(default_factory=dict)


class AddBody(JsonObject):
    """Labels to add; if one cannot be added, none is."""

    labels: Annotated[list[NewLabel], Field(min_length=1, max_length=MAX_CHANGES, fail_fast=True)]


class UpdateBody(JsonObject):
    """The new text and metadata of a label; a field that is left out does not change."""

    text: Text | None = None
    metadata: dict[str, Any] | None = None


class Addition(NewLabel):
    """Add a label."""

    op: Literal["add"]


class Update(UpdateBody):
    """Change a label."""

    op: Literal["update"]
    id: LabelId


class Removal(JsonObject):
    """Remove a label."""

    op: Literal["remove"]
    id: LabelId


LabelChange = Annotated[Addition | Update | Removal, Field(discriminator="op")]


Entry = NewLabel | Update | Removal | Change
"""A change as a body has it (an `Addition` is a `NewLabel`), or as the catalogue takes it."""


class ChangesBody(JsonObject):
    """Changes to make one after the other; if one cannot be made, none is."""

    changes: Annotated[
        list[LabelChange], Field(min_length=1, max_length=MAX_CHANGES, fail_fast=True)
    ]


class ChangedResponse(BaseModel):
    """How many changes a call made, and the catalogue after them."""

    applied: int = Field(description="Changes made by this call; all are on disk and searchable.")
    sequence: int = Field(description="Number of the last change to this catalogue.")
    labels: int = Field(description="Number of labels after the changes.")


Model = Annotated[str | None, Query(description="Name of the model; the default one if left out.")]


def add_labels(app: FastAPI, serving: Serving) -> None:
    """Add the routes under /v1/labels."""
    tags: dict[str, Any] = {"tags": ["labels"]}

    class InTurn(JsonRoute):
        """Changes wait for each other here, and not in the threads that look-ups need too."""

        turn = asyncio.Lock()

    router = APIRouter(route_class=InTurn)

    async def apply(model: str | None, entries: Sequence[Entry]) -> ChangedResponse:
        """Make changes in a thread, because encoding texts and writing to disk take long."""
        catalogue, check = _deployment(serving, model).engine.catalogue, begin_change()
        state = await asyncio.to_thread(lambda: catalogue.apply(list(map(_change, entries)), check))
        return ChangedResponse(applied=len(entries), sequence=state.seq, labels=state.n_labels)

    @router.post("/v1/labels", **tags, responses=responses(*_CHANGING) | _ADDED)
    async def add(body: AddBody, model: Model = None) -> ChangedResponse:
        """Add labels by their texts, without training; if one cannot be added, none is."""
        return await apply(model, body.labels)

    @router.post("/v1/label-changes", **tags, responses=responses(*_CHANGING))
    async def change(body: ChangesBody, model: Model = None) -> ChangedResponse:
        """Add, update and remove labels one after the other; if one change fails, none is made."""
        return await apply(model, body.changes)

    @router.put("/v1/labels/{label_id:path}", **tags, responses=responses(*_CHANGING) | _CHANGED)
    async def update(label_id: str, body: UpdateBody, model: Model = None) -> ChangedResponse:
        """Change the text or the metadata of a label; a new text gives the label a new vector."""
        return await apply(model, [Change("update", label_id, body.text, body.metadata)])

    @router.delete("/v1/labels/{label_id:path}", **tags, responses=responses(*_CHANGING))
    async def remove(label_id: str, model: Model = None) -> ChangedResponse:
        """Remove a label: later answers do not contain it."""
        return await apply(model, [Change("remove", label_id)])

    @router.get("/v1/labels/{label_id:path}", **tags, responses=responses(*_ANY, LabelUnknown))
    async def label(label_id: str, model: Model = None) -> LabelResponse:
        """Look one label up by its id."""
        deployment = _deployment(serving, model)
        hit = await asyncio.to_thread(deployment.engine.find_label, label_id)
        if hit is None:
            raise LabelUnknown(f"there is no label {label_id[:200]!r}: ids are case-sensitive")
        label, added = hit
        return LabelResponse(
            id=label.label_id,
            text=label.text,
            metadata=label.metadata,
            source="added" if added else "bundle",
            bundle_id=deployment.bundle_id,
        )

    app.include_router(router)


def _change(entry: Entry) -> Change:
    if isinstance(entry, Change):
        return entry
    if isinstance(entry, Removal):
        return Change("remove", entry.id)
    op = entry.op if isinstance(entry, Update) else "add"
    return Change(op, entry.id, entry.text, entry.metadata)


def _deployment(serving: Serving, model: str | None) -> Deployment:
    deployments = serving.deployments
    return deployments.default if model is None else deployments.slot(model).current
