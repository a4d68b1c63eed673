"""How long a request waited in its socket before this process read it.

A client measures its timeout from the moment of sending. Under load the event loop reads a request
late, so the deadline is nearer than the moment of reading suggests. Linux knows when the data came.
"""

import asyncio
import socket
import sys
from typing import Final

UNREAD: Final = "astrolabe.unread"
"""Key of that time in the ASGI scope, in seconds. Absent where `Shedding` is not armed."""

_SIZE: Final = 56
_LAST_DATA_RECEIVED: Final = slice(52, 56)
"""`tcpi_last_data_recv` of `struct tcp_info` (linux/tcp.h): milliseconds since the last data came.
"""


def unread_s(transport: asyncio.BaseTransport) -> float:
    """Seconds since this connection last got data; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0.0
    try:
        info = transport.get_extra_info("socket").getsockopt(
            socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE
        )
    except OSError:  # not TCP, or closed
        return 0.0
    return int.from_bytes(info[_LAST_DATA_RECEIVED], sys.byteorder) / 1000
