"""/v1/feedback: what users did with answers. docs/learning-loop.md says what becomes of it."""

from typing import Annotated, Any, Final, Literal, Self

from fastapi import FastAPI
from pydantic import BaseModel, Field, model_validator

from service.core.labels.label_id import MAX_ID_CHARS
from service.errors import (
    DeadlineExceeded,
    FeedbackUnavailable,
    InternalError,
    InvalidValue,
    MalformedRequest,
    NotFound,
    PayloadTooLarge,
    RateLimited,
    Unauthorized,
    UnsupportedMediaType,
)
from service.gate.problems import responses
from service.serving.json_object import JsonObject
from service.serving.request_models import VISIBLE
from service.serving.serving import Serving

MAX_EVENTS: Final = 1_000
"""Most events in one call. A choice: other answers wait while they are validated."""

MAX_POSITION: Final = 100_000
"""A choice, far above what a page shows."""

_ERRORS = (
    *(Unauthorized, PayloadTooLarge, InvalidValue, InternalError, RateLimited, DeadlineExceeded),
    *(NotFound, MalformedRequest, UnsupportedMediaType, FeedbackUnavailable),
)


class Event(JsonObject):
    """What a user did with one label of an answer."""

    label: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
    event: Literal["shown", "clicked", "accepted", "rejected"]
    request_id: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,128}$")] | None = Field(
        None, description="X-Request-Id of the answer."
    )
    query: int = Field(0, ge=0, le=MAX_POSITION, description="Place of the text in its request.")
    text: Annotated[str, Field(min_length=1, max_length=65536, pattern=VISIBLE)] | None = Field(
        None, description="The text, where the log of answers will not have it."
    )
    value: float | None = Field(
        None, ge=0, le=1e9, description="Weight of this event in place of its kind's own."
    )
    position: int | None = Field(
        None, ge=1, le=MAX_POSITION, description="Place at which the label was shown, from 1."
    )

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        if self.request_id is None and self.text is None:
            raise ValueError("give request_id or text, or nobody knows what was asked")
        return self


class FeedbackBody(JsonObject):
    """Events to store; if one is wrong, none is stored."""

    events: Annotated[list[Event], Field(min_length=1, max_length=MAX_EVENTS, fail_fast=True)] = (
        Field(examples=[[{"label": "L001", "event": "accepted", "text": "moby dick"}]])
    )


class FeedbackResponse(BaseModel):
    """How many events a call took."""

    accepted: int = Field(description="All events of the call; on disk within a second.")


def add_feedback(app: FastAPI, serving: Serving) -> None:
    """Add the route /v1/feedback."""
    tags: dict[str, Any] = {"tags": ["feedback"]}

    @app.post("/v1/feedback", status_code=202, **tags, responses=responses(*_ERRORS))
    async def feedback(body: FeedbackBody) -> FeedbackResponse:
        """Store what users did with answers; the events are on disk within a second."""
        if serving.feedback is None:
            raise NotFound(
                "this service stores no feedback: set ASTROLABE_FEEDBACK_DIR to a folder"
            )
        rows = [
            (e.request_id, e.query, e.text, e.label, e.event, e.value, e.position)
            for e in body.events
        ]
        serving.feedback.take(rows, sum(len(e.text or "") for e in body.events))
        return FeedbackResponse(accepted=len(rows))
