"""Ports: opens a listening socket, and closes it without resetting a connection.

When a listening socket closes, the kernel resets the connections that it has established and no
process has accepted. To accept them all first is not enough: one more may come between the last
accept and the close. So a socket filter first drops the packets that begin a connection. The client
sends such a packet again after a second. By then another process listens, or the kernel refuses the
connection (docs/decisions/0018).
"""

import contextlib
import ctypes
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final

_SO_ATTACH_FILTER: Final = 26  # Linux; Python's socket module does not name it

# Classic BPF as (code, jump if true, jump if false, value), from linux/filter.h. A filter on a TCP
# socket sees each packet from the TCP header on.
_NO_NEW_CONNECTION: Final = (
    (0x30, 0, 0, 13),  # load byte 13 of the header, the flags
    (0x54, 0, 0, 0x12),  # mask all flags but SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN without ACK begins a connection:
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # accept all other packets in full
)


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet; raises OSError with the address in its message."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as exc:
        listener.close()
        raise OSError(f"cannot listen on {host}:{port}: {exc.strerror}") from exc
    return listener


def hold_new_connections(listener: socket.socket) -> None:
    """Drop the packets that begin a connection, for every process that shares this socket.

    The kernel still completes handshakes that have begun. Does nothing where the system has no such
    filters.
    """
    if sys.platform != "linux":
        return
    program = b"".join(struct.pack("HBBI", *step) for step in _NO_NEW_CONNECTION)
    steps = ctypes.create_string_buffer(program, len(program))
    option = struct.pack("HP", len(_NO_NEW_CONNECTION), ctypes.addressof(steps))
    with contextlib.suppress(OSError):  # a sandbox may have no filters
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)


def accept_all(listener: socket.socket) -> Iterator[socket.socket]:
    """Accept and yield the connections that wait now; the socket must be non-blocking."""
    with contextlib.suppress(OSError):  # no connection waits, or no file descriptor is free
        while True:
            yield listener.accept()[0]
