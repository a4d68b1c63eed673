"""Settings of the logs of feedback and answers (docs/learning-loop.md)."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings


class FeedbackSettings(BaseSettings):
    """A base class of `service.settings.settings.Settings`; nothing builds it alone."""

    feedback_dir: Path | None = Field(
        None,
        description="Folder for what `POST /v1/feedback` takes, as Parquet files. Several workers "
        "and replicas may share it. Needs the extra `feedback`. Not set: the route answers 404.",
    )
    feedback_file_mb: int = Field(
        64, ge=1, le=4096, description="A file of feedback is finished when it has this size (MiB)."
    )
    feedback_file_s: float = Field(
        600.0, ge=1, description="A file of feedback is finished this long after its first row."
    )
    feedback_answers_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the answers of `/v1/recommend`, drawn at random, that is logged in "
        "`feedback_dir`. 0 is off.",
    )
    feedback_texts: bool = Field(
        False, description="Log the texts of these answers too. They may be personal data."
    )

    @model_validator(mode="after")
    def _check_feedback(self) -> Self:
        if self.feedback_answers_share and self.feedback_dir is None:
            raise ValueError(
                "feedback_answers_share is set without feedback_dir: set the folder, or neither"
            )
        return self
