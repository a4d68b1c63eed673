"""Logs of events, and a row of one."""

from pathlib import Path
from typing import Any

from service.feedback.row_log import RowLog
from service.feedback.schemas import EVENTS

ROW = (0, "r1", 0, "whale ship", "L001", "clicked", 2.5, 3)


def log(folder: Path, max_bytes: int = 1 << 20, **more: Any) -> RowLog:
    """A log of events whose files roll at this size, or after a minute."""
    return RowLog(folder, "events", EVENTS, max_bytes, 60.0, **more)
