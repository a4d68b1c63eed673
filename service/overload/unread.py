"""Unread: how long a request has been in its socket before anybody read it.

A caller's clock runs from the sending. Under load a loop comes to read a request late, so its
deadline is nearer than its arrival here says; the kernel knows since when.
"""

import asyncio
import socket
import sys
from typing import Final

UNREAD: Final = "astrolabe.unread"
"""Key of that time in the ASGI scope, in seconds; absent where nobody asked."""

_SIZE: Final = 56
_LAST_DATA_RECEIVED: Final = slice(52, 56)
"""`tcpi_last_data_recv` of Linux's `struct tcp_info`: milliseconds since the last data came."""


def unread_s(transport: asyncio.BaseTransport) -> float:
    """Seconds since the last bytes of this connection came; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0.0
    try:
        info = transport.get_extra_info("socket").getsockopt(
            socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE
        )
    except OSError:  # not TCP, or closed
        return 0.0
    return int.from_bytes(info[_LAST_DATA_RECEIVED], sys.byteorder) / 1000
