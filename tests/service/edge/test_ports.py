import errno
import select
import socket

import pytest

from service.edge.ports import accept_all, bind, hold_new_connections


def connect(listener: socket.socket) -> tuple[socket.socket, bool]:
    """A client, and whether its connection was made at once, as it is on loopback."""
    client = socket.socket()
    client.setblocking(False)
    assert client.connect_ex(listener.getsockname()) == errno.EINPROGRESS
    return client, bool(select.select([], [client], [], 0)[1])


def test_connections_that_had_begun_before_the_hold_are_kept_and_none_begins_after() -> None:
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        listener.setblocking(False)
        early, made = connect(listener)
        assert made
        hold_new_connections(listener)
        late, made = connect(listener)
        assert not made
        [kept] = accept_all(listener)
    with kept, early, late:
        early.send(b"asked")
        assert kept.recv(5) == b"asked"
        kept.send(b"answered")
        assert select.select([early], [], [], 10)[0]
        assert early.recv(8) == b"answered"


def test_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*in use"):
            bind("127.0.0.1", port)


def test_bound_port_refuses_until_it_is_served() -> None:
    with (
        bind("127.0.0.1", 0) as listener,
        socket.socket() as client,
        pytest.raises(ConnectionRefusedError),
    ):
        client.connect(listener.getsockname())
