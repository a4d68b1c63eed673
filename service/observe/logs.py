"""Log lines: one format for the whole process, with the ids of request and trace in each line."""

import json
import logging
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any, TextIO

request_id_of_task: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that the current task answers. Every log line of the task carries it."""

trace_id_of_task: ContextVar[str] = ContextVar("trace_id", default="")
"""The id of the trace that the current task belongs to; empty where requests are not traced."""


class _EntryFormatter(logging.Formatter):
    """Adds the members of `common` to every entry."""

    def __init__(self, **common: object) -> None:
        super().__init__()
        self._common = common

    def _entry(self, record: logging.LogRecord) -> dict[str, Any]:
        return _entry_of(record, self._common)


class JsonFormatter(_EntryFormatter):
    """Writes one JSON object a line; a log call adds members with `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; a newline in a value can never start a second line."""
        entry = self._entry(record)
        if record.exc_info:
            entry["exception"] = _exception_of(record)
        return json.dumps(entry, default=str)


class TextFormatter(_EntryFormatter):
    """Writes `time level logger message key=value ...` on one line, for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, with its traceback below if it has one."""
        entry = self._entry(record)
        head = " ".join(str(entry.pop(key)) for key in ("time", "level", "logger", "message"))
        line = " ".join([head, *(f"{key}={value!r}" for key, value in entry.items())])
        line = line.replace("\r", "\\r").replace("\n", "\\n")
        return f"{line}\n{_exception_of(record)}" if record.exc_info else line


def configure_logging(
    level: str, style: str, stream: TextIO | None = None, worker: int | None = None
) -> None:
    """Send every log line of the process, uvicorn's too, to standard error in one format.

    `level` is a name of the module logging; `style` is `json` or `text`. `stream` replaces standard
    error in tests. `worker` is the number of this worker process, and stands in every line.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    common = {} if worker is None else {"worker": worker}
    handler.setFormatter(JsonFormatter(**common) if style == "json" else TextFormatter(**common))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # uvicorn's start and stop lines at info repeat ours.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))


def _exception_of(record: logging.LogRecord) -> str:
    """The traceback, without the exceptions' messages if one of them quotes a private text.

    A log call passes `extra={"private": texts}` where a message may quote texts that users sent.
    """
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return ""
    text = "".join(traceback.format_exception(error)).rstrip()
    folded = text.casefold()
    private: Iterable[str] = getattr(record, "private", ())
    forms = {form.casefold() for query in private for form in (query, repr(query)[1:-1]) if query}
    if not any(form in folded for form in forms):
        return text
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
