"""Settings of logs, of traces and of the measurement of live answers."""

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings


class ObservingSettings(BaseSettings):
    """A base class of `service.settings.settings.Settings`; nothing builds it alone."""

    live_recall_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of answered queries, drawn at random, that the service searches again "
        "exactly in the background, to measure the recall of its answers. 0 is off.",
    )
    otel_endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="Address that gets OpenTelemetry traces, by OTLP over HTTP, such as "
        "`http://collector:4318`. Needs the extra `otel`. Not set: no traces.",
    )
    otel_sample_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of traces that the service sends, if the caller has not decided.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level in the log."
    )
    log_format: Literal["json", "text"] = Field(
        "json", description="One JSON object a line, or plain text for a terminal."
    )
    log_requests: Literal["all", "errors", "none"] = Field(
        "errors", description="Which requests get a log line; `errors` is status 400 and up."
    )
    log_queries: bool = Field(
        False, description="Write query texts into request log lines. They may be personal data."
    )
