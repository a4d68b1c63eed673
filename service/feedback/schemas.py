"""Schemas of the two logs (docs/learning-loop.md). This module needs pyarrow: import it late."""

from typing import Final

import pyarrow as pa

_TIME = pa.timestamp("ms", tz="UTC")

EVENTS: Final = pa.schema(
    [
        ("time", _TIME),
        ("request_id", pa.string()),
        ("query", pa.int32()),
        ("text", pa.string()),
        ("label_id", pa.string()),
        ("event", pa.string()),
        ("value", pa.float64()),
        ("position", pa.int32()),
    ]
)
ANSWERS: Final = pa.schema(
    [
        ("time", _TIME),
        ("request_id", pa.string()),
        ("query", pa.int32()),
        ("text", pa.string()),
        ("bundle_id", pa.string()),
        ("effort", pa.string()),
        ("label_ids", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
    ]
)
