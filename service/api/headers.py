"""Request headers that every answering route takes, as OpenAPI describes them.

They are read and checked by `service.gate.gate`.
"""

from typing import Any

from service.gate.gate import PRIORITY_NAMES
from service.serving.deployments import PINNED


def request_headers(max_timeout_ms: int) -> list[dict[str, Any]]:
    """OpenAPI parameters for the deadline and the priority of a request, and who answers it."""
    return [
        _header(
            "X-Request-Timeout-Ms",
            "Deadline of this request in milliseconds.",
            {"type": "integer", "minimum": 1, "maximum": max_timeout_ms},
        ),
        _header(
            "X-Request-Priority",
            "Bulk requests wait while interactive ones do, and are turned away first.",
            {"type": "string", "enum": list(PRIORITY_NAMES), "default": PRIORITY_NAMES[0]},
        ),
        _header(
            "X-Bundle",
            "Answer from this open bundle: `current`, `canary`, or the start of its id.",
            {"type": "string", "pattern": f"^{PINNED.pattern}$"},
        ),
    ]


def _header(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": schema,
    }
