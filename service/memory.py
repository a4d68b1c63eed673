"""Memory: gives back to the system what a closed bundle has left."""

import ctypes
import gc
import logging

log = logging.getLogger(__name__)


def give_back_memory() -> None:
    """Collect objects that form cycles, as those of a bundle do, and return free pages."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        log.debug("this C library has no malloc_trim")
