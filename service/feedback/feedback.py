"""Feedback: the two logs of a serving process, and the work that writes them.

Nothing here waits for the disk: rows are taken into memory, and a thread of its own writes them.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self

import orjson

from service.background import Background, end
from service.errors import FeedbackUnavailable, SettingsInvalid
from service.observe.telemetry import Telemetry
from service.settings.settings import Settings

if TYPE_CHECKING:
    from service.feedback.row_log import Row, RowLog

FLUSH_S: Final = 0.5
"""Pause between two writes. With the write itself it keeps within the second that docs state."""

WORK: Final = "feedback"


class Feedback:
    """Takes events and answers. Its methods are for the event loop's thread."""

    def __init__(
        self,
        events: "RowLog",
        answers: "RowLog",
        settings: Settings,
        telemetry: Telemetry,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`draw` gives numbers from 0 to 1, which sample; `clock` gives seconds since 1970."""
        self._events, self._answers, self._telemetry = events, answers, telemetry
        self._share, self._texts = settings.feedback_answers_share, settings.feedback_texts
        self._draw, self._clock = draw, clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=WORK)
        self._work: asyncio.Task[None] | None = None

    @classmethod
    def open(cls, settings: Settings, telemetry: Telemetry) -> Self | None:
        """The logs in `feedback_dir`, None without one.

        Raises SettingsInvalid where pyarrow is not installed, or the folder cannot be written.
        """
        folder = settings.feedback_dir
        if folder is None:
            return None
        try:
            from service.feedback.row_log import RowLog
            from service.feedback.schemas import ANSWERS, EVENTS
        except ModuleNotFoundError as exc:
            raise SettingsInvalid(
                "feedback_dir needs pyarrow, which is not installed: install the extra `feedback`"
            ) from exc
        limits = (settings.feedback_file_mb << 20, settings.feedback_file_s)
        events = RowLog(folder, "events", EVENTS, *limits)
        answers = RowLog(folder, "answers", ANSWERS, *limits, expand=answer_rows)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            events.recover()
            answers.recover()
        except OSError as exc:
            raise SettingsInvalid(
                f"feedback_dir {folder} cannot be written: {exc.strerror}"
            ) from exc
        return cls(events, answers, settings, telemetry)

    def start(self, background: Background) -> None:
        """Begin to write, on a thread of its own."""
        self._work = background.repeat(WORK, self._write, FLUSH_S)

    async def stop(self) -> None:
        """Write what waits, and finish the files. Raises OSError."""
        if self._work is not None:
            await end([self._work])
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    def take(self, events: Sequence["Row"], text_bytes: int) -> None:
        """Take events without their time; raises FeedbackUnavailable, and then takes none."""
        now_ms = round(self._clock() * 1e3)
        taken = self._events.append([(now_ms, *event) for event in events], text_bytes)
        self._telemetry.feedback("accepted" if taken else "refused", len(events))
        if not taken:
            raise FeedbackUnavailable(
                "feedback cannot be stored now: its disk is full, failing or too slow; answers go "
                "on, send these events again later"
            )

    def offer(self, request_id: str, texts: list[str] | None, body: bytes) -> None:
        """Log a sample of the answers of /v1/recommend: its body is read by the writing thread.

        `texts` is None for an answer from the cache.
        """
        if self._share and self._draw() < self._share:
            entry = (round(self._clock() * 1e3), request_id, texts if self._texts else None, body)
            taken = self._answers.append([entry], len(body) + sum(map(len, texts or [])))
            self._telemetry.feedback("answer" if taken else "answer_dropped", 1)

    async def _write(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._flush)

    def _flush(self) -> None:
        self._events.flush()
        self._answers.flush()

    def _close(self) -> None:
        self._events.close()
        self._answers.close()


def answer_rows(time_ms: int, request_id: str, texts: list[str] | None, body: bytes) -> list["Row"]:
    """One row of the log of answers for each text of a request."""
    answer = orjson.loads(body)
    bundle_id, effort = answer["bundle_id"], answer["effort"]
    return [
        (
            *(time_ms, request_id, place, texts[place] if texts else None, bundle_id, effort),
            [label["id"] for label in result["labels"]],
            [label["score"] for label in result["labels"]],
        )
        for place, result in enumerate(answer["results"])
    ]
