"""Log lines: one format for the whole process, with the request and the trace that each belongs
to."""

import json
import logging
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any, TextIO

request_id_of_task: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that the current task answers; every log line inside carries it."""

trace_id_of_task: ContextVar[str] = ContextVar("trace_id", default="")
"""The trace that the current task belongs to, where requests are traced."""


class _EntryFormatter(logging.Formatter):
    """`common` are members of every entry of this process."""

    def __init__(self, **common: object) -> None:
        super().__init__()
        self._common = common

    def _entry(self, record: logging.LogRecord) -> dict[str, Any]:
        return _entry_of(record, self._common)


class JsonFormatter(_EntryFormatter):
    """One JSON object a line; `extra={"fields": {...}}` of a log call becomes members of it."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; a newline in a value can never start a second line."""
        entry = self._entry(record)
        if record.exc_info:
            entry["exception"] = _exception_of(record)
        return json.dumps(entry, default=str)


class TextFormatter(_EntryFormatter):
    """`time level logger message key=value ...`, for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, a traceback below it where there is one."""
        entry = self._entry(record)
        head = " ".join(str(entry.pop(key)) for key in ("time", "level", "logger", "message"))
        line = " ".join([head, *(f"{key}={value!r}" for key, value in entry.items())])
        line = line.replace("\r", "\\r").replace("\n", "\\n")
        return f"{line}\n{_exception_of(record)}" if record.exc_info else line


def configure_logging(
    level: str, style: str, stream: TextIO | None = None, worker: int | None = None
) -> None:
    """Send every log line of the process, uvicorn's too, to standard error in one format.

    Where there are several workers, `worker` is this one's number and stands in every line.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    common = {} if worker is None else {"worker": worker}
    handler.setFormatter(JsonFormatter(**common) if style == "json" else TextFormatter(**common))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # uvicorn's start and stop lines at info repeat ours.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))


def _exception_of(record: logging.LogRecord) -> str:
    """The traceback; without the exceptions' messages where one quotes a text of `private`.

    A log call passes `extra={"private": texts}` where an exception may have seen what users sent.
    """
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return ""
    shown = "".join(traceback.format_exception(error)).rstrip()
    folded = shown.casefold()
    private: Iterable[str] = getattr(record, "private", ())
    forms = {form.casefold() for text in private for form in (text, repr(text)[1:-1]) if text}
    if not any(form in folded for form in forms):
        return shown
    parts = []
    cause: BaseException | None = error
    while cause is not None:
        frames = "".join(traceback.format_tb(cause.__traceback__))
        parts.append(f"{frames}{type(cause).__name__}: [withheld: a message here quotes a query]")
        cause = cause.__cause__ or cause.__context__
    return "\n".join(reversed(parts))


def _entry_of(record: logging.LogRecord, common: Mapping[str, object]) -> dict[str, Any]:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    entry: dict[str, Any] = {
        "time": f"{moment}.{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
        **common,
    }
    if request_id := request_id_of_task.get():
        entry["request_id"] = request_id
    if trace_id := trace_id_of_task.get():
        entry["trace_id"] = trace_id
    fields = getattr(record, "fields", None)
    return entry | fields if isinstance(fields, dict) else entry
