"""What was measured, and where: the service's own account of itself, and the client's machine.

Both go into the result, so that a number can be traced to a bundle, a device and a machine. A
service that does not answer is no reason to stop: the run itself will say what is wrong with it.
"""

import http.client
import json
import os
import platform
from importlib import metadata
from typing import Any

from loadtest.target import Target

MAX_BYTES = 1_000_000


def read_server_info(target: Target, timeout_s: float = 2.0) -> dict[str, Any] | None:
    """Return the /v1/info object, or None where there is no such answer."""
    kind = http.client.HTTPSConnection if target.tls else http.client.HTTPConnection
    connection = kind(target.host, target.port, timeout=timeout_s)
    try:
        connection.request("GET", f"{target.prefix}/v1/info", headers={"Host": target.host_header})
        response = connection.getresponse()
        body = response.read(MAX_BYTES)
        info = json.loads(body) if response.status == http.client.OK else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return info if isinstance(info, dict) else None


def describe_machine() -> dict[str, str | int]:
    """Return CPU counts, platform and the versions that shape the measurement."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpus": os.cpu_count() or 1,
        "cpus_usable": len(affinity(0)) if affinity else (os.cpu_count() or 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "loadgen": metadata.version("mlcommons-loadgen"),
    }
