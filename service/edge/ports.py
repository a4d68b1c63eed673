"""Ports: how one is opened, and how it is closed without hanging up on anybody.

Closing a listening socket resets every connection that the kernel has made and nobody has accepted.
Accepting them all first leaves a moment between the last look and the closing, in which one more
may come. So new ones are held off before: their first packet is dropped, which a client sends again
a second later, to whoever listens by then, or to be refused.
"""

import contextlib
import ctypes
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final

_SO_ATTACH_FILTER: Final = 26  # Linux; Python's socket module does not name it

# Classic BPF, (code, jump if true, jump if false, value); it sees a packet from its TCP header on.
_NO_NEW_CONNECTION: Final = (
    (0x30, 0, 0, 13),  # load the byte of flags
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone begins a connection:
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # let everything else through whole
)


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet; raises OSError with the address in it."""
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
    """Let no connection begin any more, for every process that shares this socket.

    Connections that have begun are still made. Where the system cannot do it, nothing changes.
    """
    if sys.platform != "linux":
        return
    program = b"".join(struct.pack("HBBI", *step) for step in _NO_NEW_CONNECTION)
    steps = ctypes.create_string_buffer(program, len(program))
    option = struct.pack("HP", len(_NO_NEW_CONNECTION), ctypes.addressof(steps))
    with contextlib.suppress(OSError):  # a sandbox may have no filters
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)


def accept_all(listener: socket.socket) -> Iterator[socket.socket]:
    """Connections that wait to be accepted right now; the socket must not block."""
    with contextlib.suppress(OSError):  # none is left, or no file descriptor is
        while True:
            yield listener.accept()[0]
