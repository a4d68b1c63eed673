"""Describes the service under test, from its own GET /v1/info, and the client's machine.

Both descriptions go into the result, so that a reader can trace a number to a bundle, a device and
a machine. A service that does not answer does not stop the test: the test itself reports failures.
"""

import http.client
import json
import os
import platform
from importlib import metadata
from typing import Any

from loadtest.target import Target

MAX_BYTES = 1_000_000  # a choice: far above any /v1/info, so that no server fills the memory


def read_server_info(target: Target, timeout_s: float = 2.0) -> dict[str, Any] | None:
    """Return the JSON object of GET /v1/info, or None where the service does not give one."""
    make = http.client.HTTPSConnection if target.tls else http.client.HTTPConnection
    connection = make(target.host, target.port, timeout=timeout_s)
    try:
        headers = {"Host": target.host_header, **target.headers}
        connection.request("GET", f"{target.prefix}/v1/info", headers=headers)
        response = connection.getresponse()
        body = response.read(MAX_BYTES)
        info = json.loads(body) if response.status == http.client.OK else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return info if isinstance(info, dict) else None


def describe_machine() -> dict[str, str | int]:
    """Return the number of CPUs, the platform, and the versions of Python and LoadGen."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpus": os.cpu_count() or 1,
        "cpus_usable": len(affinity(0)) if affinity else (os.cpu_count() or 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "loadgen": metadata.version("mlcommons-loadgen"),
    }
