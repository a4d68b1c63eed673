"""Describes the machine the client ran on, without anything that identifies its owner."""

import os
import platform
from importlib import metadata


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
