"""Descriptors: notices that the process has no free file descriptor.

The event loop (libuv) then accepts a new connection and closes it at once, without a word to
anybody. So this looks several times a second whether a file can be opened.
"""

import errno
import logging
import math
import os
import resource
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

LOOK_S: Final = 0.25
"""Between two looks. A choice: a shortage that lasts shorter closes few connections."""

LOG_EVERY_S: Final = 60.0
"""Between two log lines: a shortage can last for hours."""


class DescriptorWatch:
    """Looks whether a file descriptor is free."""

    def __init__(
        self, on_none_free: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`on_none_free` counts a look that found none. `clock` gives seconds."""
        self._on_none_free = on_none_free
        self._clock = clock
        self._logged_s = -math.inf

    def look(self) -> None:
        """Count it where none is free, and log it once a minute."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as exc:
            if exc.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._on_none_free()
            now = self._clock()
            if now - self._logged_s >= LOG_EVERY_S:
                self._logged_s = now
                limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
                log.error(
                    "no file descriptor is free, so new connections are closed unanswered: raise "
                    "the limit of open files (it is %d), or lower ASTROLABE_MAX_CONNECTIONS",
                    limit,
                )
